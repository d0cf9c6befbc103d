//! Every check there is, in order, each with its time; the first failure ends it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Context as _;

use crate::{Workspace, python};

fn run_all(steps: Vec<(&str, Step<'_>)>) -> anyhow::Result<()> {
    let total = Instant::now();
    let count = steps.len();
    let mut passed = Vec::new();
    for (number, (name, act)) in steps.into_iter().enumerate() {
        eprintln!("=== {} of {count}: {name}", number + 1);
        let started = Instant::now();
        act().with_context(|| {
            format!("{name} failed after {}; passed before: {}", secs(started), listed(&passed))
        })?;
        eprintln!("=== {name}: {}", secs(started));
        passed.push(format!("{name} {}", secs(started)));
    }
    eprintln!("=== all passed in {}: {}", secs(total), listed(&passed));
    Ok(())
}

type Step<'a> = Box<dyn FnOnce() -> anyhow::Result<()> + 'a>;

fn step<'a>(step: impl FnOnce() -> anyhow::Result<()> + 'a) -> Step<'a> {
    Box::new(step)
}

pub fn run(workspace: &Workspace) -> anyhow::Result<()> {
    let python = PathBuf::from_iter([workspace.root.as_path(), Path::new(".venv/bin/python")]);
    let cargo =
        |args: &'static [&'static str]| step(move || crate::run(workspace.cargo().args(args)));
    run_all(vec![
        ("format", cargo(&["fmt", "--all", "--check"])),
        ("python environment", step(|| python::environment(&workspace.root).map(|_| ()))),
        ("build", step(|| workspace.build())),
        (
            "clippy",
            cargo(&[
                "clippy",
                "--quiet",
                "--workspace",
                "--all-targets",
                "--",
                "--deny",
                "warnings",
            ]),
        ),
        ("fuzz targets", step(|| fuzz_targets(workspace))),
        ("tests", step(|| tests(workspace, &python))),
        (
            "python tests",
            step(|| {
                let mut pytest = Command::new(&python);
                pytest.args(["-m", "pytest", "-q"]).current_dir(workspace.root.join("sdk"));
                crate::run(pytest.env("PYTHONDONTWRITEBYTECODE", "1"))
            }),
        ),
        (
            "outstation dev --once",
            step(|| {
                crate::run(workspace.outstation_dev(&python).arg("--once").stdin(Stdio::null()))
            }),
        ),
    ])
}

/// That they fit what they are about. `fuzz/run` runs them, with a nightly compiler.
fn fuzz_targets(workspace: &Workspace) -> anyhow::Result<()> {
    let mut clippy = workspace.cargo();
    clippy.args(["clippy", "--quiet", "--manifest-path", "fuzz/Cargo.toml"]);
    clippy.args(["--target-dir", "target/fuzz", "--", "--deny", "warnings"]);
    // Nothing is linked: libFuzzer itself is not needed.
    crate::run(clippy.env("CUSTOM_LIBFUZZER_PATH", "/libfuzzer.a"))
}

fn tests(workspace: &Workspace, python: &Path) -> anyhow::Result<()> {
    let has_nextest = workspace
        .cargo()
        .args(["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let mut command = workspace.cargo();
    // One process per test with nextest; without it (a new machine) the same tests in threads.
    if has_nextest {
        command.args(["nextest", "run", "--workspace", "--no-fail-fast", "--status-level", "fail"]);
    } else {
        command.args(["test", "--quiet", "--workspace", "--no-fail-fast"]);
    }
    // With a fixed seed the suite repeats itself to the letter; without it, as in `cargo nextest run`,
    // the property tests look for what is new.
    command.env("PROPTEST_RNG_SEED", "24301");
    crate::run(command.env("OUTSTATION_TEST_PYTHON", python).stdin(Stdio::null()))
}

fn listed(passed: &[String]) -> String {
    if passed.is_empty() { "nothing".into() } else { passed.join(", ") }
}

fn secs(since: Instant) -> String {
    format!("{:.1} s", since.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn the_first_failure_ends_it_and_is_named() {
        let ran = RefCell::new(Vec::new());
        let make = |name: &'static str, ok: bool| {
            let ran = &ran;
            let each = step(move || {
                ran.borrow_mut().push(name);
                anyhow::ensure!(ok, "broken");
                Ok(())
            });
            (name, each)
        };
        let steps = vec![make("one", true), make("two", false), make("three", true)];
        let error = format!("{:#}", run_all(steps).expect_err("two fails"));
        assert_eq!(*ran.borrow(), ["one", "two"]);
        assert!(error.starts_with("two failed after"), "{error}");
        assert!(error.contains("passed before: one"), "{error}");
    }
}
