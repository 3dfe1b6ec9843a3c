//! Writing and reading XDR (RFC 4506) for version 4, whose operations come in any order.

use std::io::{Read, Write};

use nfs3_client::nfs3_types::xdr_codec::{self, Pack, Unpack};

use super::{Fault, Outcome};

/// What is sent.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Bytes of a length that both sides know; a multiple of four.
    pub(super) fn fixed(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A length and bytes.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

impl Pack for Writer {
    fn packed_size(&self) -> usize {
        self.0.len()
    }

    fn pack(&self, out: &mut impl Write) -> xdr_codec::Result<usize> {
        out.write_all(&self.0)?;
        Ok(self.0.len())
    }
}

/// What was received.
#[derive(Debug, Default)]
pub(super) struct Reader {
    bytes: Vec<u8>,
    at: usize,
}

impl Unpack for Reader {
    fn unpack(input: &mut impl Read) -> xdr_codec::Result<(Self, usize)> {
        let mut bytes = Vec::new();
        let size = input.read_to_end(&mut bytes)?;
        Ok((Self { bytes, at: 0 }, size))
    }
}

impl Reader {
    #[cfg(test)]
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn take(&mut self, count: usize) -> Outcome<&[u8]> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| Fault::Protocol("the server's answer is cut short".into()))?;
        let start = std::mem::replace(&mut self.at, end);
        Ok(&self.bytes[start..end])
    }

    fn array<const N: usize>(&mut self) -> Outcome<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self) -> Outcome<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Outcome<u64> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub(super) fn verifier(&mut self) -> Outcome<[u8; 8]> {
        self.array()
    }

    pub(super) fn flag(&mut self) -> Outcome<bool> {
        Ok(self.u32()? != 0)
    }

    pub(super) fn bytes(&mut self) -> Outcome<Vec<u8>> {
        let length = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        let bytes = self.take(length)?.to_vec();
        self.take(length.next_multiple_of(4) - length)?;
        Ok(bytes)
    }

    /// An attribute bitmap: the words that are there.
    pub(super) fn bitmap(&mut self) -> Outcome<Vec<u32>> {
        let words = self.u32()?;
        if words > 8 {
            return Err(Fault::Protocol("a bitmap of more words than any has".into()));
        }
        (0..words).map(|_| self.u32()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_padded_to_four() {
        let mut writer = Writer::default();
        writer.u32(7).bytes(b"abcde").u64(1 << 40).u32(1);
        assert_eq!(writer.0.len(), 4 + 4 + 8 + 8 + 4);
        let mut reader = Reader::new(writer.0);
        assert_eq!(reader.u32().unwrap(), 7);
        assert_eq!(reader.bytes().unwrap(), b"abcde");
        assert_eq!(reader.u64().unwrap(), 1 << 40);
        assert!(reader.flag().unwrap());
        assert!(reader.u32().is_err());
    }

    #[test]
    fn no_length_in_an_answer_leads_out_of_it() {
        for wild in [[0xff; 4], [0, 0, 0, 5]] {
            assert!(Reader::new(wild.to_vec()).bytes().is_err());
        }
        assert!(Reader::new(vec![0xff; 4]).bitmap().is_err());
    }
}
