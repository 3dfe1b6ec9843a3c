//! Attributes of version 4 (RFC 8881, 5): numbered, in a bitmap, their values in the order of the numbers.

use super::super::xdr::{Reader, Writer};
use super::super::{Attr, Fault, Fh, Kind, Outcome, Set, Stamp, Time, Who};

const TYPE: u32 = 1;
const SIZE: u32 = 4;
const FSID: u32 = 8;
const RDATTR_ERROR: u32 = 11;
const FILEHANDLE: u32 = 19;
const FILEID: u32 = 20;
pub(super) const MAXREAD: u32 = 30;
pub(super) const MAXWRITE: u32 = 31;
const MODE: u32 = 33;
const NUMLINKS: u32 = 35;
const OWNER: u32 = 36;
const OWNER_GROUP: u32 = 37;
const RAWDEV: u32 = 41;
pub(super) const SPACE_AVAIL: u32 = 42;
pub(super) const SPACE_TOTAL: u32 = 44;
const SPACE_USED: u32 = 45;
const TIME_ACCESS: u32 = 47;
const TIME_ACCESS_SET: u32 = 48;
const TIME_METADATA: u32 = 52;
const TIME_MODIFY: u32 = 53;
const TIME_MODIFY_SET: u32 = 54;

/// What is asked of every file.
const FILE: [u32; 13] = [
    TYPE,
    SIZE,
    FSID,
    FILEID,
    MODE,
    NUMLINKS,
    OWNER,
    OWNER_GROUP,
    RAWDEV,
    SPACE_USED,
    TIME_ACCESS,
    TIME_METADATA,
    TIME_MODIFY,
];

/// Writes a bitmap.
pub(super) fn bitmap(to: &mut Writer, attributes: &[u32]) {
    let words = attributes.iter().map(|number| number / 32 + 1).max().unwrap_or(0);
    to.u32(words);
    for word in 0..words {
        let bits = attributes.iter().filter(|number| *number / 32 == word);
        to.u32(bits.fold(0, |bits, number| bits | 1 << (number % 32)));
    }
}

/// Writes the bitmap of what is asked of every file.
pub(super) fn ask_file(to: &mut Writer) {
    bitmap(to, &FILE);
}

/// The same for the entries of a directory, with their handles.
pub(super) fn ask_entry(to: &mut Writer) {
    bitmap(to, &[&FILE[..], &[RDATTR_ERROR, FILEHANDLE]].concat());
}

/// What was answered.
#[derive(Debug)]
pub(super) struct Got {
    pub(super) attr: Attr,
    pub(super) fh: Option<Fh>,
    /// An entry's attributes could not be had.
    pub(super) error: bool,
}

/// Reads the attributes of a file.
pub(super) fn read(from: &mut Reader) -> Outcome<Got> {
    let words = from.bitmap()?;
    from.u32()?;
    let mut got = Got { attr: nothing(), fh: None, error: false };
    let numbers = words.iter().zip(0..).flat_map(|(word, at): (&u32, u32)| {
        (0..32).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at * 32 + bit)
    });
    for number in numbers {
        one(from, number, &mut got)?;
    }
    Ok(got)
}

fn one(from: &mut Reader, number: u32, got: &mut Got) -> Outcome<()> {
    let attr = &mut got.attr;
    match number {
        TYPE => attr.kind = kind(from.u32()?)?,
        SIZE => attr.size = from.u64()?,
        FSID => attr.fsid = (from.u64()?, from.u64()?),
        RDATTR_ERROR => got.error = from.u32()? != 0,
        FILEHANDLE => got.fh = Some(from.bytes()?),
        FILEID => attr.id = from.u64()?,
        MODE => attr.mode = from.u32()? & 0o7777,
        NUMLINKS => attr.links = from.u32()?,
        OWNER => attr.owner = who(from.bytes()?),
        OWNER_GROUP => attr.group = who(from.bytes()?),
        RAWDEV => attr.device = (from.u32()?, from.u32()?),
        SPACE_USED => attr.used = from.u64()?,
        TIME_ACCESS => attr.atime = time(from)?,
        TIME_METADATA => attr.ctime = time(from)?,
        TIME_MODIFY => attr.mtime = time(from)?,
        other => return Err(Fault::Protocol(format!("attribute {other} was not asked for"))),
    }
    Ok(())
}

/// Reads numbers of eight bytes, in the order of `asked`; `None` for one that the server does not have.
pub(super) fn numbers<const N: usize>(from: &mut Reader, asked: [u32; N]) -> Outcome<[Option<u64>; N]> {
    let words = from.bitmap()?;
    from.u32()?;
    let has =
        |number: u32| words.get(number as usize / 32).is_some_and(|word| word >> (number % 32) & 1 == 1);
    let mut values = [None; N];
    for (value, number) in values.iter_mut().zip(asked) {
        if has(number) {
            *value = Some(from.u64()?);
        }
    }
    Ok(values)
}

fn nothing() -> Attr {
    Attr {
        kind: Kind::File,
        mode: 0,
        links: 1,
        owner: Who::Id(0),
        group: Who::Id(0),
        size: 0,
        used: 0,
        device: (0, 0),
        id: 0,
        fsid: (0, 0),
        atime: Time::default(),
        mtime: Time::default(),
        ctime: Time::default(),
    }
}

fn kind(number: u32) -> Outcome<Kind> {
    Ok(match number {
        1 => Kind::File,
        // NF4ATTRDIR and NF4NAMEDATTR never come without being asked for.
        2 => Kind::Directory,
        3 => Kind::Block,
        4 => Kind::Char,
        5 => Kind::Link,
        6 => Kind::Socket,
        7 => Kind::Fifo,
        other => return Err(Fault::Protocol(format!("file type {other} is unknown"))),
    })
}

/// `1000`, or `root@example.org`.
fn who(text: Vec<u8>) -> Who {
    let number = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
    number.map_or(Who::Name(text), Who::Id)
}

fn time(from: &mut Reader) -> Outcome<Time> {
    Ok(Time { seconds: from.u64()?.cast_signed(), nanos: from.u32()? })
}

/// Writes attributes to be set: bitmap and values.
pub(super) fn write(to: &mut Writer, set: &Set) {
    let given = [
        (SIZE, set.size.is_some()),
        (MODE, set.mode.is_some()),
        (OWNER, set.owner.is_some()),
        (OWNER_GROUP, set.group.is_some()),
        (TIME_ACCESS_SET, set.atime.is_some()),
        (TIME_MODIFY_SET, set.mtime.is_some()),
    ];
    let numbers: Vec<u32> = given.iter().filter(|(_, given)| *given).map(|(number, _)| *number).collect();
    bitmap(to, &numbers);
    let mut values = Writer::default();
    if let Some(size) = set.size {
        values.u64(size);
    }
    if let Some(mode) = set.mode {
        values.u32(mode);
    }
    for who in [&set.owner, &set.group].into_iter().flatten() {
        match who {
            Who::Id(id) => values.bytes(id.to_string().as_bytes()),
            Who::Name(name) => values.bytes(name),
        };
    }
    for stamp in [set.atime, set.mtime].into_iter().flatten() {
        match stamp {
            Stamp::Now => values.u32(0),
            Stamp::At(time) => values.u32(1).u64(time.seconds.cast_unsigned()).u32(time.nanos),
        };
    }
    to.bytes(&values.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_has_the_order_of_the_numbers() {
        let set = Set {
            mode: Some(0o750),
            owner: Some(Who::Id(1000)),
            mtime: Some(Stamp::At(Time { seconds: -1, nanos: 5 })),
            ..Set::default()
        };
        let mut writer = Writer::default();
        write(&mut writer, &set);
        let mut reader = Reader::new(writer.0);
        assert_eq!(reader.bitmap().unwrap(), [0, 1 << 1 | 1 << 4 | 1 << 22]);
        reader.u32().unwrap();
        assert_eq!(reader.u32().unwrap(), 0o750);
        assert_eq!(reader.bytes().unwrap(), b"1000");
        assert_eq!(reader.u32().unwrap(), 1);
        assert_eq!(time(&mut reader).unwrap(), Time { seconds: -1, nanos: 5 });
    }

    #[test]
    fn owners_are_numbers_or_names() {
        assert_eq!(who(b"1000".to_vec()), Who::Id(1000));
        assert_eq!(who(b"root@x".to_vec()), Who::Name(b"root@x".to_vec()));
        assert_eq!(who(vec![0xff]), Who::Name(vec![0xff]));
    }
}
