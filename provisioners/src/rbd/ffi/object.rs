//! Single objects: object class calls and key-value maps.

use std::ffi::{c_char, c_int};
use std::ptr::{null, null_mut};

use super::api::Handle;
use super::pool::Pool;
use super::{Errno, check, text};

/// `LIBRADOS_CMPXATTR_OP_EQ`.
const EQUAL: u8 = 1;
/// `LIBRADOS_CREATE_EXCLUSIVE`.
const EXCLUSIVE: c_int = 1;

/// One call of an object class: class, method, input.
pub(crate) type ClassCall<'a> = (&'a str, &'a str, Vec<u8>);

impl Pool {
    /// Calls an object class method that may write; the output is at most 64 KiB.
    pub(crate) fn exec(
        &self,
        object: &str,
        (class, method, input): &ClassCall<'_>,
    ) -> Result<Vec<u8>, Errno> {
        let (object, class, method) = (text(object)?, text(class)?, text(method)?);
        let mut output = vec![0_u8; 64 << 10];
        // SAFETY: strings and buffers live through the call and are as long as is said.
        let code = unsafe {
            (self.connection.api.rados.rados_exec)(
                self.raw,
                object.as_ptr(),
                class.as_ptr(),
                method.as_ptr(),
                input.as_ptr(),
                input.len(),
                output.as_mut_ptr(),
                output.len(),
            )
        };
        let length = check(code)?;
        output.truncate(usize::try_from(length).unwrap_or(0));
        Ok(output)
    }

    /// Calls several reading methods of one object in one round trip.
    pub(crate) fn read_calls(&self, object: &str, calls: &[ClassCall<'_>]) -> Result<Vec<Vec<u8>>, Errno> {
        let rados = &self.connection.api.rados;
        let object = text(object)?;
        let names: Vec<_> =
            calls.iter().map(|(c, m, _)| Ok((text(c)?, text(m)?))).collect::<Result<_, Errno>>()?;
        let mut answers = vec![(null_mut::<c_char>(), 0_usize, 0); calls.len()];
        // SAFETY: the operation is used by this thread only and released below.
        let op: Handle = unsafe { (rados.rados_create_read_op)() };
        for (((class, method), (_, _, input)), (out, length, code)) in
            names.iter().zip(calls).zip(answers.iter_mut())
        {
            // SAFETY: strings, input and the places for the answers live until the operation was carried out.
            unsafe {
                (rados.rados_read_op_exec)(
                    op,
                    class.as_ptr(),
                    method.as_ptr(),
                    input.as_ptr(),
                    input.len(),
                    out,
                    length,
                    code,
                );
            }
        }
        // SAFETY: the operation, the pool and the string are alive.
        let code = unsafe { (rados.rados_read_op_operate)(op, self.raw, object.as_ptr(), 0) };
        // SAFETY: not used any more.
        unsafe { (rados.rados_release_read_op)(op) };
        let outputs: Vec<_> =
            answers.iter().map(|(out, length, _)| self.connection.take(*out, *length)).collect();
        check(code)?;
        answers.iter().try_for_each(|(_, _, code)| check(*code).map(drop))?;
        Ok(outputs)
    }

    /// Makes an object with a content. There is one of that name: EEXIST.
    pub(crate) fn create_object(&self, object: &str, content: &[u8]) -> Result<(), Errno> {
        let rados = &self.connection.api.rados;
        self.write(object, |op| {
            // SAFETY: the content is as long as is said and outlives the operation; no category is given.
            unsafe {
                (rados.rados_write_op_create)(op, EXCLUSIVE, null());
                (rados.rados_write_op_write_full)(op, content.as_ptr(), content.len());
            }
        })
    }

    /// Removes an object. None such: ENOENT.
    pub(crate) fn remove_object(&self, object: &str) -> Result<(), Errno> {
        let object = text(object)?;
        // SAFETY: pool and string are alive.
        check(unsafe { (self.connection.api.rados.rados_remove)(self.raw, object.as_ptr()) }).map(drop)
    }

    /// Removes an object if it begins with these bytes in that moment; else ECANCELED. None such: ENOENT.
    pub(crate) fn remove_object_if(&self, object: &str, content: &[u8]) -> Result<(), Errno> {
        let rados = &self.connection.api.rados;
        self.write(object, |op| {
            // SAFETY: the content is as long as is said and outlives the operation; the result of the comparison is that of
            // the operation.
            unsafe {
                (rados.rados_write_op_cmpext)(op, content.as_ptr(), content.len(), 0, null_mut());
                (rados.rados_write_op_remove)(op);
            }
        })
    }

    /// Breaks a lock (cls_lock) by its owner (`client.4711`) and cookie. Nobody is fenced. No such lock: ENOENT.
    pub(crate) fn break_lock(
        &self,
        object: &str,
        lock: &str,
        client: &str,
        cookie: &str,
    ) -> Result<(), Errno> {
        let (object, lock, client, cookie) = (text(object)?, text(lock)?, text(client)?, text(cookie)?);
        // SAFETY: pool and strings are alive.
        check(unsafe {
            (self.connection.api.rados.rados_break_lock)(
                self.raw,
                object.as_ptr(),
                lock.as_ptr(),
                client.as_ptr(),
                cookie.as_ptr(),
            )
        })
        .map(drop)
    }

    /// Sets keys of an object's map; the object is made if it is not there.
    pub(crate) fn omap_set(&self, object: &str, entries: &[(&str, &[u8])]) -> Result<(), Errno> {
        let keys: Vec<_> = entries.iter().map(|(key, _)| key.as_ptr().cast::<c_char>()).collect();
        let values: Vec<_> = entries.iter().map(|(_, value)| value.as_ptr().cast::<c_char>()).collect();
        let key_lengths: Vec<_> = entries.iter().map(|(key, _)| key.len()).collect();
        let value_lengths: Vec<_> = entries.iter().map(|(_, value)| value.len()).collect();
        self.write(object, |op| {
            // SAFETY: four arrays of as many entries as is said, whose targets outlive the operation.
            unsafe {
                (self.connection.api.rados.rados_write_op_omap_set2)(
                    op,
                    keys.as_ptr(),
                    values.as_ptr(),
                    key_lengths.as_ptr(),
                    value_lengths.as_ptr(),
                    entries.len(),
                );
            }
        })
    }

    /// Removes keys of an object's map; no such key or object: nothing to do.
    pub(crate) fn omap_remove(&self, object: &str, keys: &[&str]) -> Result<(), Errno> {
        let pointers: Vec<_> = keys.iter().map(|key| key.as_ptr().cast::<c_char>()).collect();
        let lengths: Vec<_> = keys.iter().map(|key| key.len()).collect();
        let removed = self.write(object, |op| {
            // SAFETY: two arrays of as many entries as is said, whose targets outlive the operation.
            unsafe {
                (self.connection.api.rados.rados_write_op_omap_rm_keys2)(
                    op,
                    pointers.as_ptr(),
                    lengths.as_ptr(),
                    keys.len(),
                );
            }
        });
        match removed {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }

    /// Calls several writing methods of one object, all or none.
    pub(crate) fn write_calls(&self, object: &str, calls: &[ClassCall<'_>]) -> Result<(), Errno> {
        self.write_calls_if(object, &[], calls)
    }

    /// The same if keys of its map have these values in that moment (empty: no such key); else ECANCELED, and nothing is
    /// written.
    pub(crate) fn write_calls_if(
        &self,
        object: &str,
        has: &[(String, &[u8])],
        calls: &[ClassCall<'_>],
    ) -> Result<(), Errno> {
        let names: Vec<_> =
            calls.iter().map(|(c, m, _)| Ok((text(c)?, text(m)?))).collect::<Result<_, Errno>>()?;
        let rados = &self.connection.api.rados;
        self.write(object, |op| {
            for (key, value) in has {
                // SAFETY: key and value are as long as is said and outlive the operation; the result of the comparison is
                // that of the operation.
                unsafe {
                    (rados.rados_write_op_omap_cmp2)(
                        op,
                        key.as_ptr().cast(),
                        EQUAL,
                        value.as_ptr(),
                        key.len(),
                        value.len(),
                        null_mut(),
                    );
                }
            }
            for ((class, method), (_, _, input)) in names.iter().zip(calls) {
                // SAFETY: strings and input outlive the operation; the result of each call is that of the operation.
                unsafe {
                    (rados.rados_write_op_exec)(
                        op,
                        class.as_ptr(),
                        method.as_ptr(),
                        input.as_ptr(),
                        input.len(),
                        null_mut(),
                    );
                }
            }
        })
    }

    fn write(&self, object: &str, fill: impl FnOnce(Handle)) -> Result<(), Errno> {
        let rados = &self.connection.api.rados;
        let object = text(object)?;
        // SAFETY: the operation is used by this thread only and released below.
        let op = unsafe { (rados.rados_create_write_op)() };
        fill(op);
        // SAFETY: the operation, the pool and the string are alive; no modification time is given.
        let code = unsafe { (rados.rados_write_op_operate)(op, self.raw, object.as_ptr(), null_mut(), 0) };
        // SAFETY: not used any more.
        unsafe { (rados.rados_release_write_op)(op) };
        check(code).map(drop)
    }

    /// Entries of an object's map whose key starts with `prefix`, after `after`, at most `max`. No such object: none.
    pub(crate) fn omap_list(
        &self,
        object: &str,
        after: &str,
        prefix: &str,
        max: u64,
    ) -> Result<Vec<(String, Vec<u8>)>, Errno> {
        let rados = &self.connection.api.rados;
        let (object, after, prefix) = (text(object)?, text(after)?, text(prefix)?);
        let (mut entries, mut more, mut code) = (null_mut(), 0_u8, 0);
        // SAFETY: the operation is used by this thread only and released below.
        let op = unsafe { (rados.rados_create_read_op)() };
        // SAFETY: strings and the places for the answers live until the operation was carried out.
        unsafe {
            (rados.rados_read_op_omap_get_vals2)(
                op,
                after.as_ptr(),
                prefix.as_ptr(),
                max,
                &raw mut entries,
                &raw mut more,
                &raw mut code,
            );
        }
        // SAFETY: the operation, the pool and the string are alive.
        let done = check(unsafe { (rados.rados_read_op_operate)(op, self.raw, object.as_ptr(), 0) });
        // SAFETY: not used any more.
        unsafe { (rados.rados_release_read_op)(op) };
        let found = if done.is_ok() { self.entries(entries) } else { Vec::new() };
        if !entries.is_null() {
            // SAFETY: made by the operation, ended once.
            unsafe { (rados.rados_omap_get_end)(entries) };
        }
        match done {
            Err(Errno::NOENT) => Ok(Vec::new()),
            other => other.map(|_| found),
        }
    }

    fn entries(&self, iterator: Handle) -> Vec<(String, Vec<u8>)> {
        let mut found = Vec::new();
        loop {
            let (mut key, mut value, mut key_length, mut value_length) = (null_mut(), null_mut(), 0, 0);
            // SAFETY: the iterator was made by a read that succeeded.
            let code = unsafe {
                (self.connection.api.rados.rados_omap_get_next2)(
                    iterator,
                    &raw mut key,
                    &raw mut value,
                    &raw mut key_length,
                    &raw mut value_length,
                )
            };
            if code < 0 || key.is_null() {
                return found;
            }
            // SAFETY: librados says how long both are; they live until the iterator ends.
            let key = unsafe { std::slice::from_raw_parts(key.cast::<u8>(), key_length) };
            let value = if value.is_null() {
                &[]
            } else {
                // SAFETY: as above.
                unsafe { std::slice::from_raw_parts(value.cast::<u8>(), value_length) }
            };
            found.push((String::from_utf8_lossy(key).into_owned(), value.to_vec()));
        }
    }
}
