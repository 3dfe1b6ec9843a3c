//! What an operation needs of a volume, a snapshot or a path while it runs, and which needs exclude each other. There is
//! one name for a volume in a process, whatever handle a call has for it: controller and node calls meet on it.

use provisioners::Identity;

/// How a thing is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// By nobody else: it is made, deleted, grown, published, staged or unstaged.
    Alone,
    /// Its data is copied as of one moment (CreateSnapshot): nobody may begin or end to write meanwhile.
    Copy,
    /// Its data is the source of a new volume. As [`Mode::Copy`], and several at once.
    Read,
    /// Something that is mounted already is bound to a pod's path, or taken from there: who can write stays the same.
    Bind,
    /// A raw block device is given to a pod, which begins to write.
    Open,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Alone, Self::Copy, Self::Read, Self::Bind, Self::Open];

    /// Whether two operations may hold one thing at once.
    pub fn goes_with(self, other: Self) -> bool {
        use Mode::{Alone, Bind, Copy, Open, Read};
        match (self.min(other), self.max(other)) {
            (Alone, _) | (Copy, Copy | Read | Open) | (Read, Open) => false,
            (Copy | Read | Bind | Open, _) => true,
        }
    }
}

/// What an operation holds while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// The thing, such as `volume default:db`: errors name it.
    pub key: String,
    /// How it is held.
    pub mode: Mode,
}

impl Hold {
    /// A thing held in some mode.
    pub fn new(mode: Mode, key: impl Into<String>) -> Self {
        Self { key: key.into(), mode }
    }

    /// A volume.
    pub fn volume(mode: Mode, id: &Identity) -> Self {
        Self::new(mode, format!("volume {id}"))
    }

    /// A snapshot.
    pub fn snapshot(mode: Mode, id: &Identity) -> Self {
        Self::new(mode, format!("snapshot {id}"))
    }

    /// A group snapshot, by nobody else.
    pub fn group(id: &Identity) -> Self {
        Self::new(Mode::Alone, format!("group snapshot {id}"))
    }

    /// A path on this node.
    pub fn path(path: &std::path::Path) -> Self {
        Self::new(Mode::Alone, format!("path {}", path.display()))
    }

    /// Whether it cannot be held beside another.
    pub fn conflicts(&self, other: &Self) -> bool {
        self.key == other.key && !self.mode.goes_with(other.mode)
    }
}

/// Which operations share a bound on how many work at once, and whether one that meets another is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The controller's.
    Controller,
    /// The node's.
    Node,
    /// Those that free something. They wait in line where others are refused, so that a row of copies or changes cannot
    /// keep them out, and they have places of their own, so that nothing that hangs can.
    Freeing,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Controller, Self::Node, Self::Freeing];

    /// The class of an RPC.
    pub fn of(rpc: &str) -> Self {
        match rpc {
            "NodeUnpublishVolume" | "NodeUnstageVolume" | "ControllerUnpublishVolume" => Self::Freeing,
            name if name.starts_with("Node") => Self::Node,
            _ => Self::Controller,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each RPC holds of the volume that it is about.
    const TABLE: [(&str, Mode); 14] = [
        ("CreateVolume", Mode::Alone),
        ("DeleteVolume", Mode::Alone),
        ("ControllerPublishVolume", Mode::Alone),
        ("ControllerUnpublishVolume", Mode::Alone),
        ("ControllerExpandVolume", Mode::Alone),
        ("ControllerModifyVolume", Mode::Alone),
        ("NodeStageVolume", Mode::Alone),
        ("NodeUnstageVolume", Mode::Alone),
        ("NodeExpandVolume", Mode::Alone),
        ("CreateSnapshot", Mode::Copy),
        ("CreateVolume from it", Mode::Read),
        ("NodePublishVolume", Mode::Bind),
        ("NodeUnpublishVolume", Mode::Bind),
        ("NodePublishVolume of a block device", Mode::Open),
    ];

    #[test]
    fn c12_every_pair_of_operations_on_one_volume() {
        let together = [
            ("CreateSnapshot", "NodePublishVolume"),
            ("CreateSnapshot", "NodeUnpublishVolume"),
            ("CreateVolume from it", "CreateVolume from it"),
            ("CreateVolume from it", "NodePublishVolume"),
            ("CreateVolume from it", "NodeUnpublishVolume"),
            ("NodePublishVolume", "NodePublishVolume"),
            ("NodePublishVolume", "NodeUnpublishVolume"),
            ("NodePublishVolume", "NodePublishVolume of a block device"),
            ("NodeUnpublishVolume", "NodeUnpublishVolume"),
            ("NodeUnpublishVolume", "NodePublishVolume of a block device"),
            ("NodePublishVolume of a block device", "NodePublishVolume of a block device"),
        ];
        for (a, in_a) in TABLE {
            for (b, in_b) in TABLE {
                let wanted = together.contains(&(a, b)) || together.contains(&(b, a));
                let hold = |mode, id| Hold::volume(mode, &Identity::new(id));
                let (one, other) = (hold(in_a, "v"), hold(in_b, "v"));
                assert_eq!(!one.conflicts(&other), wanted, "{a} beside {b}");
                assert!(!one.conflicts(&hold(in_b, "w")), "another volume is no concern");
            }
        }
    }

    #[test]
    fn freeing_calls_wait_in_line() {
        let waits: Vec<_> = TABLE.iter().filter(|(name, _)| Class::of(name) == Class::Freeing).collect();
        assert_eq!(waits.len(), 3);
        assert_eq!(Class::of("NodeStageVolume"), Class::Node);
        assert_eq!(Class::of("CreateVolume"), Class::Controller);
    }
}
