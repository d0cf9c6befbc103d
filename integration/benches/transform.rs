//! `cargo bench -p outstation-integration --bench transform [-- SCENARIO… --quick]`: builds what is measured,
//! and hands over to `outstation-load bench`, which starts it and its peers; `-- --help` says what there is.

use std::path::Path;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let cargo = |arguments: &[&str]| {
        let status = Command::new(env!("CARGO")).args(arguments).current_dir(root).status();
        status.is_ok_and(|status| status.success())
    };
    let release = ["build", "--release", "--workspace", "--bins", "--lib"];
    // The dev build of the runner makes .venv and places the native module there.
    if !cargo(&["run", "--quiet", "-p", "outstation-runner", "--", "python"]) || !cargo(&release) {
        return ExitCode::FAILURE;
    }
    if let Err(error) = place_native_module(root) {
        eprintln!("error: the native module cannot be placed: {error}");
        return ExitCode::FAILURE;
    }
    let load = root.join("target/release/outstation-load");
    // Cargo's own argument is not ours.
    let arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let status = Command::new(load).arg("bench").arg("--root").arg(root).args(arguments).status();
    match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: outstation-load does not start: {error}");
            ExitCode::FAILURE
        }
    }
}

/// By renaming: a worker that has the old one mapped keeps it.
fn place_native_module(root: &Path) -> std::io::Result<()> {
    let beside = root.join(format!("sdk/.native-{}.so", std::process::id()));
    std::fs::copy(root.join("target/release/liboutstation_native.so"), &beside)?;
    std::fs::rename(beside, root.join("sdk/outstation/_native.abi3.so"))
}
