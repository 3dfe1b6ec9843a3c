//! A progress bar on a terminal, for what takes longer than a moment.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over a number of things.
pub struct Count(ProgressBar);

/// Shows nothing before there is a number, and nothing where standard error is no terminal.
pub fn count(what: &str) -> Count {
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len}  {per_sec}  {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(what.to_owned());
    Count(bar)
}

impl Count {
    /// So many of so many are done.
    pub fn at(&self, done: usize, all: usize) {
        self.0.set_length(all as u64);
        self.0.set_position(done as u64);
    }

    /// Takes the bar away.
    pub fn end(&self) {
        self.0.finish_and_clear();
    }
}
