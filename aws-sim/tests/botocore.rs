//! botocore's service model and moto as witnesses: the codes that the simulation answers are AWS's, and where moto is
//! right both answer alike. Runs with `OUTSTATION_TEST_PYTHON`, or the system's python3; without what it needs there it says
//! so and tests nothing.

#[path = "common/process.rs"]
mod process;

use std::io::Write as _;
use std::process::{Command, Stdio};

use outstation_aws_sim::model::error::Code;
use process::{ACCESS_KEY, SECRET, Serve, TOKEN};

/// A Python that can import `module`.
fn python_with(module: &str) -> Option<String> {
    let python = std::env::var("OUTSTATION_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let probe = Command::new(&python)
        .args(["-c", &format!("import {module}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if probe.is_ok_and(|status| status.success()) {
        return Some(python);
    }
    eprintln!(
        "NOT TESTED: {python} cannot import {module}; set OUTSTATION_TEST_PYTHON to one that can"
    );
    None
}

#[test]
fn every_code_is_one_of_aws() {
    let Some(python) = python_with("botocore") else { return };
    let mut child = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/botocore_codes.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines: String = Code::ALL
        .iter()
        .map(|code| format!("{} {}\n", code.as_str(), code.http_status()))
        .collect();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("codes agree"), "{said}{wrong}");
}

/// The steps of the script against `target`.
fn steps(python: &str, target: &str, url: &str) -> Vec<String> {
    let output = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/moto_check.py"))
        .arg(target)
        .env("SIM_URL", url)
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .env("AWS_SESSION_TOKEN", TOKEN)
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        .env("NO_PROXY", "127.0.0.0/8,127.0.0.1")
        .output()
        .unwrap();
    let wrong = String::from_utf8_lossy(&output.stderr);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{target}: {said}{wrong}");
    said.lines().map(str::to_owned).collect()
}

#[test]
fn moto_and_the_simulation_answer_alike() {
    let Some(python) = python_with("moto") else { return };
    let serve = Serve::start(111, "exec sleep 3600\n");
    let (moto, sim) = (steps(&python, "moto", ""), steps(&python, "sim", &serve.url()));
    assert!(moto.len() >= 20, "{moto:?}");
    let differ: Vec<String> = moto
        .iter()
        .zip(&sim)
        .filter(|(moto, sim)| moto != sim)
        .map(|(moto, sim)| format!("moto {moto}\n sim {sim}"))
        .collect();
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    assert_eq!(sim.len(), moto.len());
}
