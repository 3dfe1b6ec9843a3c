//! How a program ends that may have Ceph's libraries loaded.

use std::io::Write as _;

/// An exit code, as [`std::process::ExitCode`], which cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitCode(u8);

impl ExitCode {
    /// 0.
    pub const SUCCESS: Self = Self(0);
    /// 1.
    pub const FAILURE: Self = Self(1);

    /// Ends the process at once: exit(3) would take down what librados has in memory while a thread of ours may still be
    /// in a call of it, and that ends in an abort.
    pub fn end(self) -> ! {
        // What cannot be written now is lost as it would be at any end.
        let _ = std::io::stdout().flush();
        crate::rbd::exit(self.0)
    }
}

impl From<u8> for ExitCode {
    fn from(code: u8) -> Self {
        Self(code)
    }
}
