//! The fuzz targets on a bounded number of inputs: hand-written ones, parts and mixtures of them, and any bytes.

use e2e::fuzzing;
use proptest::prelude::*;

/// Inputs that are right or nearly so, for each target.
const SEEDS: [&[u8]; 18] = [
    b"type=file\nthick=true\nmode=0770\nmkfsOptions=-i 8192 -L data\nnameTemplate=${pvc.namespace}-${pvc.name}\n",
    b"type=directory\nuid=999\ngid=999\nmode=07777\nroot=default\n",
    b"nameTemplate=${pvc.labels.app}/../../etc\nfsType=ntfs\nroot=/nonexistent/volumes\n",
    b"nameTemplate=${pvc.name\nthick=maybe\nmkfsOptions=/dev/sda\nTYPE=file\n",
    b"default:pvc-0b1c2d3e",
    b"default:../../etc/passwd",
    b"default:.volumectl",
    b":x:y:",
    b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime shared:7 master:1 - ext3 /dev/root rw,errors=continue\n",
    b"1 2 0:5 / /a\\ rw unbindable - tmpfs t rw\n\n2 1 0:6 / /b\\011\\134 ro - proc none rw",
    b"1 2 0:5 / /a rw",
    br#"{"schema":1,"kind":"volume","id":"default:a","name":"a","cluster":"c","type":"file","capacity":1048576}"#,
    br#"{"schema":99,"kind":"volume"}"#,
    b"{",
    b"1.5Gi",
    b"18446744073709551616",
    b"1e400",
    b"\xff\xfe\x00\xf0\x9f\x92\xbe",
];

fn all(data: &[u8]) {
    fuzzing::parameters(data);
    fuzzing::handles(data);
    fuzzing::tokens(data);
    fuzzing::mountinfo(data);
    fuzzing::records(data);
    fuzzing::quantities(data);
}

#[test]
fn hand_written_inputs_and_every_part_of_them() {
    for seed in SEEDS {
        (0..=seed.len()).for_each(|cut| all(&seed[..cut]));
        (0..seed.len()).for_each(|cut| all(&seed[cut..]));
    }
}

#[test]
fn a_record_of_the_backend_with_any_byte_changed() {
    for seed in SEEDS {
        for i in 0..seed.len() {
            for byte in [0, b'"', b'/', b'9', 0xff] {
                let mut changed = seed.to_vec();
                changed[i] = byte;
                all(&changed);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(data in prop::collection::vec(any::<u8>(), 0..300)) {
        all(&data);
    }

    #[test]
    fn mixtures(parts in prop::collection::vec((0..SEEDS.len(), any::<prop::sample::Index>()), 1..5)) {
        let cut = |(seed, at): (usize, prop::sample::Index)| SEEDS[seed][at.index(SEEDS[seed].len())..].to_vec();
        all(&parts.into_iter().flat_map(cut).collect::<Vec<_>>());
    }
}
