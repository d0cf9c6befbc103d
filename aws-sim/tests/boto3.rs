//! boto3 as a second client: another implementation of the wire protocol, of SigV4 and of the service model's shapes.
//! Runs with `OUTSTATION_TEST_PYTHON`, or the system's python3; without boto3 there it says so and tests nothing.

#[path = "common/process.rs"]
mod process;

use std::process::{Command, Stdio};

use process::{ACCESS_KEY, SECRET, Serve, TOKEN};

#[test]
fn boto3_agrees() {
    let python = std::env::var("OUTSTATION_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let probe = Command::new(&python)
        .args(["-c", "import boto3"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !probe.is_ok_and(|status| status.success()) {
        eprintln!(
            "NOT TESTED: {python} cannot import boto3; set OUTSTATION_TEST_PYTHON to one that can"
        );
        return;
    }
    let serve = Serve::start(110, "exec sleep 3600\n");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/boto3_check.py");
    let output = Command::new(&python)
        .arg(script)
        .env("SIM_URL", serve.url())
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .env("AWS_SESSION_TOKEN", TOKEN)
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        .env("NO_PROXY", "127.0.0.0/8,127.0.0.1")
        .output()
        .unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success() && said.contains("boto3 agrees"), "{said}");
}
