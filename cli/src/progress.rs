//! Progress on standard error. Off when that is not a terminal (indicatif sees to it).

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A line that turns until it is dropped.
pub struct Spinner(ProgressBar);

impl Spinner {
    pub fn set(&self, message: impl Into<String>) {
        self.0.set_message(message.into());
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

pub fn spinner(message: impl Into<String>) -> Spinner {
    let bar = ProgressBar::new_spinner().with_message(message.into());
    bar.enable_steady_tick(Duration::from_millis(100));
    Spinner(bar)
}

pub fn bar(length: u64, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{prefix:>10} {bar:40} {human_pos}/{human_len}  {per_sec}  {eta} left",
    )
    .expect("a constant, valid template");
    ProgressBar::new(length).with_style(style).with_prefix(what)
}
