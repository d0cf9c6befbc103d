//! Errors of commands that a person runs: what is wrong, and what to do.

/// `error: …` / `hint: …`
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Hinted {
    pub message: String,
    pub hint: String,
}

impl Hinted {
    pub fn error(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
        Hinted { message: message.into(), hint: hint.into() }.into()
    }
}
