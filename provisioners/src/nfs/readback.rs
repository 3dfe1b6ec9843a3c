//! A file that nodes read through a new mount, to see whether their kernel and the server agree on what is stored. Not
//! every pair does: kernels from 6.12 on read zeros from ganesha 4.3 with version 4.2 (READ_PLUS), without an error.

use super::client::{Fh, Outcome};
use super::share::{Own, Share};

/// Its path below a share's root.
pub const READ_BACK: &str = ".volumectl/readback";
/// Its name in the driver's directory.
const NAME: &[u8] = b"readback";
/// Its size in bytes: more than a page, less than any server takes in one call.
const SIZE: usize = 32 << 10;

/// What is in it: no zeros, and no page like another.
pub fn read_back() -> Vec<u8> {
    let byte = |at: usize| u8::try_from(1 + (at * 31 + at / 4096 * 7) % 255).unwrap_or(1);
    (0..SIZE).map(byte).collect()
}

/// Makes it where it is missing, complete or not at all. A share can be used without it, also when it is full.
pub(super) fn ensure(share: &Share, dir: &Fh, own: &Own) {
    let make = || -> Outcome<()> {
        match share.look(dir, NAME)? {
            Some(node) if node.attr.size == SIZE as u64 => Ok(()),
            _ => share.replace(own, dir, NAME, &read_back()),
        }
    };
    if let Err(fault) = make() {
        tracing::debug!(share = %share.place(), %fault, "nodes cannot see whether they read what is stored");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_page_is_empty_or_like_another() {
        let content = read_back();
        assert!(content.len() == SIZE && !content.contains(&0));
        let pages: std::collections::BTreeSet<_> = content.chunks(4096).collect();
        assert_eq!(pages.len(), SIZE / 4096);
    }
}
