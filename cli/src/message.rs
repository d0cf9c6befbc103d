//! What a person reads when something fails: one line of what, one line of what to do next.

use std::fmt;
use std::io::ErrorKind;

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

/// `line 3 (colour = "red"): unknown field …`, rather than a drawing of several lines.
pub fn of_toml(text: &str, error: &toml::de::Error) -> String {
    let message = one_line(error.message());
    let Some(span) = error.span() else { return message };
    if message.starts_with("missing field") && span.start == 0 {
        return message;
    }
    let number = text.get(..span.start).map_or(1, |before| before.matches('\n').count() + 1);
    let line: String =
        text.lines().nth(number - 1).unwrap_or_default().trim().chars().take(80).collect();
    format!("line {number} ({line}): {message}")
}

/// The two lines that `main` prints, without a final newline.
pub fn two_lines(error: &anyhow::Error) -> String {
    let hint = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Failure>())
        .map_or_else(|| general_hint(error), |failure| failure.hint.as_str());
    format!("error: {}\nhint: {hint}", one_line(&chain(error)))
}

/// For what nobody foresaw at its place: what the machine refused says what to do.
fn general_hint(error: &anyhow::Error) -> &'static str {
    let kind = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<std::io::Error>())
        .map(std::io::Error::kind);
    match kind {
        Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge) => {
            "make room on the disk that holds it; what was there before is as it was"
        }
        Some(ErrorKind::ReadOnlyFilesystem) => {
            "it lies on a disk that is mounted read-only: mount it writable, or name another place"
        }
        Some(ErrorKind::PermissionDenied) => {
            "run this as the user that owns it, or give this user the right (chown, chmod)"
        }
        Some(ErrorKind::NotADirectory | ErrorKind::AlreadyExists) => {
            "a file stands where there must be a folder: check the path"
        }
        Some(ErrorKind::NotFound) => "check the name: it does not exist",
        Some(_) | None => "run again with RUST_LOG=debug for more",
    }
}

/// clap's several paragraphs as two lines: what is wrong with the arguments, and how they go.
pub fn of_arguments(clap: &str) -> String {
    // The list of verbs names those that are not for people, too.
    let told = |text: &str| -> String {
        let lines = text.lines().filter(|line| !line.trim_start().starts_with("[subcommands: "));
        one_line(&lines.collect::<Vec<_>>().join("\n")).replace(":; ", ": ")
    };
    let mut paragraphs = clap.split("\n\n").map(told);
    let what = paragraphs.next().unwrap_or_default();
    let mut hints: Vec<String> = paragraphs
        .filter(|text| !text.is_empty())
        .map(|text| match text.strip_prefix("For more information, try ") {
            Some(_) => "--help says more".to_owned(),
            None => text.trim_start_matches("tip: ").replacen("Usage: ", "usage: ", 1),
        })
        .collect();
    if hints.is_empty() {
        hints.push("--help says more".to_owned());
    }
    let what = what.strip_prefix("error: ").unwrap_or(&what);
    format!("error: {what}\nhint: {}", hints.join("; "))
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
    fn what_clap_says_is_two_lines() {
        for (clap, wanted) in [
            (
                "error: unrecognized subcommand 'aply'\n\n  tip: a similar subcommand exists: 'apply'\n\n\
                 Usage: outstation <COMMAND>\n\nFor more information, try '--help'.\n",
                "error: unrecognized subcommand 'aply'\n\
                 hint: a similar subcommand exists: 'apply'; usage: outstation <COMMAND>; --help says more",
            ),
            (
                "error: the following required arguments were not provided:\n  <TARGET>\n",
                "error: the following required arguments were not provided: <TARGET>\n\
                 hint: --help says more",
            ),
        ] {
            assert_eq!(of_arguments(clap), wanted);
        }
    }

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
