//! A Python environment of its own for other people's AWS: ministack pins another botocore than the rest of the tests.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::workspace;

/// Made once, and made again when its requirements change.
pub fn python_with_moto() -> Result<PathBuf> {
    let requirements = workspace().join("integration/tests/enrollment/requirements.txt");
    let wanted = std::fs::read_to_string(&requirements)?;
    let venv = workspace().join("target/enrollment-venv");
    let (python, stamp) = (venv.join("bin/python"), venv.join(".stamp"));
    let lock = std::fs::File::create(workspace().join("target/.enrollment-venv.lock"))?;
    lock.lock()?;
    if std::fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
        return Ok(python);
    }
    let base = crate::python();
    let uv = base.with_file_name("uv");
    let run = |command: &mut Command| -> Result<()> {
        let output = command.stdin(Stdio::null()).output()?;
        if !output.status.success() {
            bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    };
    run(Command::new(&uv)
        .args(["venv", "--quiet", "--clear", "--no-config", "--python"])
        .arg(&base)
        .arg(&venv))?;
    run(Command::new(&uv)
        .args(["pip", "install", "--quiet", "--no-config", "--python"])
        .arg(&python)
        .arg("--requirement")
        .arg(&requirements))?;
    std::fs::write(stamp, wanted)?;
    Ok(python)
}
