//! Requests of several operations (RFC 8881, 16.2), and the answers to each.

use super::super::xdr::{Reader, Writer};
use super::super::{Fault, Fh, Outcome, Set, Status};
use super::attrs;

/// The special state that reads and writes without an open file (RFC 8881, 8.2.3).
const ANONYMOUS: [u8; 16] = [0; 16];
/// The state that the operation before has given (RFC 8881, 16.2.3.1.2).
const CURRENT: [u8; 16] = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// Open for writing; no delegation is wanted.
const WRITE_NO_DELEGATION: u32 = 2 | 0x0400;
const GUARDED: u32 = 1;
const UNSTABLE: u32 = 0;
pub(super) const FILE_SYNC: u32 = 2;

/// Operations, in the order in which the server does them.
#[derive(Debug)]
pub(super) struct Request {
    operations: u32,
    body: Writer,
}

/// Where in a request the number of its operations is: after an empty tag and the minor version.
const COUNT: usize = 8;

macro_rules! operation {
    ($($(#[$doc:meta])* $name:ident = $number:literal ($($arg:ident: $type:ty),*) |$body:ident| $write:block)*) => {$(
        $(#[$doc])*
        pub(super) fn $name(&mut self $(, $arg: $type)*) -> &mut Self {
            self.operations += 1;
            self.body.u32($number);
            let $body = &mut self.body;
            $write;
            self
        }
    )*};
}

impl Request {
    /// A request without operations.
    pub(super) fn new(minor: u32) -> Self {
        let mut body = Writer::default();
        body.bytes(b"").u32(minor).u32(0);
        Self { operations: 0, body }
    }

    operation! {
        fh = 22(fh: &Fh) |body| { body.bytes(fh); }
        root = 24() |_body| {}
        get_fh = 10() |_body| {}
        save = 32() |_body| {}
        lookup = 15(name: &[u8]) |body| { body.bytes(name); }
        file_attr = 9() |body| { attrs::ask_file(body); }
        attr = 9(numbers: &[u32]) |body| { attrs::bitmap(body, numbers); }
        set = 34(set: &Set) |body| { body.fixed(&ANONYMOUS); attrs::write(body, set); }
        remove = 28(name: &[u8]) |body| { body.bytes(name); }
        /// From the saved directory to the current one.
        rename = 29(name: &[u8], new: &[u8]) |body| { body.bytes(name).bytes(new); }
        /// The saved file gets a name in the current directory.
        link = 11(name: &[u8]) |body| { body.bytes(name); }
        readlink = 27() |_body| {}
        read = 25(at: u64, count: u32) |body| { body.fixed(&ANONYMOUS).u64(at).u32(count); }
        write = 38(at: u64, data: &[u8]) |body| { body.fixed(&ANONYMOUS).u64(at).u32(UNSTABLE).bytes(data); }
        /// To the file that was opened by the operation before.
        write_opened = 38(data: &[u8]) |body| { body.fixed(&CURRENT).u64(0).u32(FILE_SYNC).bytes(data); }
        set_opened = 34(set: &Set) |body| { body.fixed(&CURRENT); attrs::write(body, set); }
        commit = 5() |body| { body.u64(0).u32(0); }
        close = 4() |body| { body.u32(0).fixed(&CURRENT); }
        /// Makes a file that must not exist, and opens it.
        create_file = 18(client: u64, name: &[u8], set: &Set) |body| {
            body.u32(0).u32(WRITE_NO_DELEGATION).u32(0).u64(client).bytes(b"volumectl");
            body.u32(1).u32(GUARDED);
            attrs::write(body, set);
            body.u32(0).bytes(name);
        }
        list = 26(cookie: u64, verifier: &[u8; 8], directory: u32, most: u32) |body| {
            body.u64(cookie).fixed(verifier).u32(directory).u32(most);
            attrs::ask_entry(body);
        }
        clone = 71() |body| { body.fixed(&ANONYMOUS).fixed(&ANONYMOUS).u64(0).u64(0).u64(0); }
        list_xattrs = 74() |body| { body.u64(0).u32(1 << 16); }
        get_xattr = 72(name: &[u8]) |body| { body.bytes(name); }
        /// Made or replaced.
        set_xattr = 73(name: &[u8], value: &[u8]) |body| { body.u32(0).bytes(name).bytes(value); }
        sequence = 53(session: &[u8; 16], sequence: u32) |body| {
            body.fixed(session).u32(sequence).u32(0).u32(0).u32(0);
        }
        reclaim_complete = 58() |body| { body.u32(0); }
        destroy_session = 44(session: &[u8; 16]) |body| { body.fixed(session); }
        destroy_client = 57(client: u64) |body| { body.u64(client); }
    }

    /// CREATE of what is no plain file; `data` is what its type has beside.
    pub(super) fn make(
        &mut self,
        kind: u32,
        data: impl FnOnce(&mut Writer) -> &mut Writer,
        name: &[u8],
        set: &Set,
    ) -> &mut Self {
        self.operations += 1;
        self.body.u32(6).u32(kind);
        data(&mut self.body);
        self.body.bytes(name);
        attrs::write(&mut self.body, set);
        self
    }

    /// EXCHANGE_ID: says who we are.
    pub(super) fn exchange_id(&mut self, owner: &[u8], verifier: &[u8; 8]) -> &mut Self {
        self.operations += 1;
        self.body.u32(42).fixed(verifier).bytes(owner).u32(0).u32(0).u32(0);
        self
    }

    /// CREATE_SESSION of one slot.
    pub(super) fn create_session(&mut self, client: u64, sequence: u32, largest: u32) -> &mut Self {
        self.operations += 1;
        self.body.u32(43).u64(client).u32(sequence).u32(0);
        for size in [largest, 4096] {
            // Padding, largest request, largest answer, largest that is kept, operations, slots, no RDMA.
            self.body.u32(0).u32(size).u32(size).u32(4096).u32(16).u32(1).u32(0);
        }
        // The callback program is never called; AUTH_NONE for it.
        self.body.u32(0x4000_0000).u32(1).u32(0);
        self
    }

    /// The whole request.
    pub(super) fn encode(mut self) -> Writer {
        self.body.0[COUNT..COUNT + 4].copy_from_slice(&self.operations.to_be_bytes());
        self.body
    }
}

/// The answers to a request's operations, read in their order.
#[derive(Debug)]
pub(super) struct Answer(Reader);

impl Answer {
    /// Reads the head; the failure of the request itself.
    pub(super) fn begin(mut reader: Reader) -> Outcome<Self> {
        let status = Status(reader.u32()?);
        reader.bytes()?;
        let operations = reader.u32()?;
        if operations == 0 && status != Status(0) {
            return Err(match status {
                Status::MINOR_VERSION => Fault::NoVersion(status.to_string()),
                other => Fault::Status(other),
            });
        }
        Ok(Self(reader))
    }

    /// The next operation's answer: what follows its status.
    pub(super) fn next(&mut self) -> Outcome<&mut Reader> {
        self.0.u32()?;
        match Status(self.0.u32()?) {
            Status(0) => Ok(&mut self.0),
            status => Err(Fault::Status(status)),
        }
    }

    /// The next ones, of which nothing is wanted.
    pub(super) fn skip(&mut self, operations: usize) -> Outcome<()> {
        (0..operations).try_for_each(|_| self.next().map(drop))
    }

    pub(super) fn node(&mut self) -> Outcome<super::super::Node> {
        let fh = self.next()?.bytes()?;
        let attr = attrs::read(self.next()?)?.attr;
        Ok(super::super::Node { fh, attr })
    }

    /// `change_info4`: twice eight bytes and a flag.
    pub(super) fn changed(&mut self) -> Outcome<()> {
        self.next()?.take(20).map(drop)
    }

    /// OPEN: the state, and what else is of no use here.
    pub(super) fn opened(&mut self) -> Outcome<()> {
        let reader = self.next()?;
        reader.take(16 + 20 + 4)?;
        reader.bitmap()?;
        match reader.u32()? {
            0 => Ok(()),
            3 => match reader.u32()? {
                // Contention and resource have a flag more.
                1 | 2 => reader.u32().map(drop),
                _ => Ok(()),
            },
            _ => Err(Fault::Protocol("the server delegates a file, which was not wanted".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_counts_its_operations() {
        let mut request = Request::new(1);
        request.fh(&vec![1, 2, 3, 4]).lookup(b"name").get_fh().file_attr();
        let bytes = request.encode().0;
        // An empty tag, the minor version, four operations, the first of them PUTFH.
        assert_eq!(bytes[..16], [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 22]);
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_client_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), good in any::<bool>()) {
            if good {
                // A head that leads on: status, empty tag, two operations, the first of them done.
                let head = [[0; 4], [0; 4], [0, 0, 0, 2], [0; 4], [0; 4]].concat();
                bytes.splice(0..0, head);
            }
            let begin = || Answer::begin(Reader::new(bytes.clone()));
            let _ = begin().and_then(|mut answer| answer.node());
            let _ = begin().and_then(|mut answer| answer.opened());
            let _ = begin().and_then(|mut answer| attrs::read(answer.next()?));
            let _ = begin().and_then(|mut answer| answer.skip(usize::from(u8::MAX)));
        }
    }
}
