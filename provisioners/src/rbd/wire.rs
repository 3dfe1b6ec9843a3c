//! The input and output of Ceph's object class `rbd` (cls_rbd), which librbd and the kernel's client speak with the
//! storage daemons: little-endian numbers; texts and blobs with their length before them.

use std::collections::BTreeMap;

use crate::{Error, Result};

/// The snapshot id that means the image itself: `CEPH_NOSNAP`.
pub(super) const HEAD: u64 = u64::MAX - 1;

/// Writes inputs.
#[derive(Debug, Default)]
pub(super) struct Encoder(Vec<u8>);

impl Encoder {
    pub(super) fn number(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn blob(mut self, bytes: &[u8]) -> Self {
        self.0.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.0.extend(bytes);
        self
    }

    pub(super) fn byte(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    /// A struct with its version, and the oldest that can read it.
    pub(super) fn versioned(self, version: u8, compatible: u8, fields: &Self) -> Self {
        self.byte(version).byte(compatible).blob(&fields.0)
    }

    /// A time: seconds and nanoseconds of the Unix epoch in 32 bits each.
    pub(super) fn time(mut self, time: jiff::Timestamp) -> Self {
        self.0.extend(u32::try_from(time.as_second()).unwrap_or(u32::MAX).to_le_bytes());
        self.0.extend(u32::try_from(time.subsec_nanosecond()).unwrap_or(0).to_le_bytes());
        self
    }

    /// A map of texts to blobs.
    pub(super) fn map(mut self, entries: &[(&str, &[u8])]) -> Self {
        self.0.extend(u32::try_from(entries.len()).unwrap_or(u32::MAX).to_le_bytes());
        entries.iter().fold(self, |it, (key, value)| it.blob(key.as_bytes()).blob(value))
    }

    pub(super) fn done(self) -> Vec<u8> {
        self.0
    }
}

/// Reads outputs. One that ends too early: [`Error::Corrupt`].
#[derive(Debug)]
pub(super) struct Decoder<'a>(pub(super) &'a [u8]);

impl<'a> Decoder<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count).ok_or_else(|| Error::Corrupt {
            what: "the storage daemon's answer".into(),
            problem: format!("{count} bytes were expected, {} are left", self.0.len()),
        })?;
        self.0 = rest;
        Ok(head)
    }

    fn length(&mut self) -> Result<usize> {
        let bytes = self.take(4)?;
        let number = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        Ok(usize::try_from(number).unwrap_or(usize::MAX))
    }

    pub(super) fn number(&mut self) -> Result<u64> {
        let bytes = self.take(8)?;
        Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    pub(super) fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn text(&mut self) -> Result<String> {
        let length = self.length()?;
        Ok(String::from_utf8_lossy(self.take(length)?).into_owned())
    }

    pub(super) fn map(&mut self) -> Result<BTreeMap<String, String>> {
        let count = self.length()?;
        let mut map = BTreeMap::new();
        for _ in 0..count {
            let key = self.text()?;
            map.insert(key, self.text()?);
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let bytes = Encoder::default().map(&[("a", b"1"), ("b", b"")]).number(HEAD).done();
        let mut decoder = Decoder(&bytes);
        let map = decoder.map().unwrap();
        assert_eq!(map, BTreeMap::from([("a".into(), "1".into()), ("b".into(), String::new())]));
        assert_eq!(decoder.number().unwrap(), HEAD);
        assert!(decoder.byte().is_err());
    }

    #[test]
    fn an_answer_that_ends_early_is_an_error() {
        assert!(Decoder(&[200, 0, 0, 0, 1]).text().is_err());
        assert!(Decoder(&[255, 255, 255, 255]).map().is_err());
    }
}
