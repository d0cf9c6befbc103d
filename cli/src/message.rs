//! What a person reads when something fails: one line of what, one line of what to do next.

use std::fmt;

/// A failure with advice. Anything else that reaches `main` gets a general hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub what: String,
    pub hint: String,
}

impl Failure {
    pub fn new(what: impl Into<String>, hint: impl Into<String>) -> Failure {
        Failure { what: what.into(), hint: hint.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Failure {}

pub trait Hint<T> {
    /// Keeps the failure's whole chain as its first line and adds the advice.
    fn hint(self, hint: impl Into<String>) -> Result<T, anyhow::Error>;
}

impl<T, E: Into<anyhow::Error>> Hint<T> for Result<T, E> {
    fn hint(self, hint: impl Into<String>) -> Result<T, anyhow::Error> {
        self.map_err(|error| Failure::new(chain(&error.into()), hint).into())
    }
}

/// `outer: inner: innermost`, without saying the same thing twice.
pub fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// The two lines that `main` prints, without a final newline.
pub fn two_lines(error: &anyhow::Error) -> String {
    let hint = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Failure>())
        .map_or("run again with RUST_LOG=debug for more", |failure| &failure.hint);
    format!("error: {}\nhint: {hint}", one_line(&chain(error)))
}

fn one_line(text: &str) -> String {
    text.split('\n').map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

/// To standard output. A reader that has seen enough (`| head`) is no error.
pub fn print(text: std::fmt::Arguments<'_>) {
    let written = std::io::Write::write_fmt(&mut std::io::stdout().lock(), text);
    if let Err(error) = written
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        eprintln!("error: standard output: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context as _, anyhow};

    #[test]
    fn a_failure_is_two_lines_whatever_its_chain() {
        let plain = anyhow!("no such\nfile").context("read the context");
        assert_eq!(
            two_lines(&plain),
            "error: read the context: no such; file\nhint: run again with RUST_LOG=debug for more"
        );
        let hinted = Err::<(), _>(anyhow!("connection refused"))
            .context("ask the broker")
            .hint("is it running?")
            .expect_err("an error");
        assert_eq!(
            two_lines(&hinted),
            "error: ask the broker: connection refused\nhint: is it running?"
        );
    }
}
