//! Another time of day for one program: a library in front of libc's, made by the C compiler that
//! Rust links with and that is therefore there.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// The program that `command` starts believes it is so many seconds later (or earlier).
pub fn shift(command: &mut Command, secs: i64) -> Result<()> {
    command.env("LD_PRELOAD", library()?).env("CLOCK_SHIFT_SECS", secs.to_string());
    Ok(())
}

/// What a supervised program needs in its environment for the same.
fn library() -> Result<PathBuf> {
    let folder = crate::workspace().join("target").join("whole-system");
    std::fs::create_dir_all(&folder)?;
    let source = folder.join(format!("clock_shift.{}.c", std::process::id()));
    let library = folder.join("clock_shift.so");
    std::fs::write(&source, include_str!("clock_shift.c"))?;
    let part = source.with_extension("so.part");
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .arg(&part)
        .arg(&source)
        .output()
        .context("cc, with which Rust links, is there")?;
    std::fs::remove_file(&source)?;
    ensure!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
    std::fs::rename(part, &library)?;
    Ok(library)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_believes_in_another_day() -> Result<()> {
        let year = |secs: i64| -> Result<i64> {
            let mut date = Command::new("date");
            shift(&mut date, secs)?;
            let output = date.arg("+%s").output()?;
            Ok(String::from_utf8(output.stdout)?.trim().parse()?)
        };
        let (now, later) = (year(0)?, year(86_400)?);
        assert!((86_400..86_460).contains(&(later - now)), "{now} {later}");
        Ok(())
    }
}
