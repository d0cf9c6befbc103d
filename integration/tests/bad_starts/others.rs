//! The simulated AWS, the transform server, the node agent, and what `cargo dev` needs of Python.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use anyhow::Result;
use outstation_cli::dev::layout::agent_credentials;
use outstation_integration::bad::run_until_told;
use outstation_integration::{binaries, python};

use crate::Wrong::{Config, Do, File, Kind, Missing, Nobody, ReadOnly};
use crate::{Place, Table, judge};

const LISTEN: &str = "listen = \"127.0.0.1:0\"";
const AWS: &str = r#"listen = "127.0.0.1:0"
account = "123456789012"
region = "eu-central-1"
instance_net = "127.127.0.0"
instance_role = "outstation-node"
instance_role_id = "AROADEVNODEROLE000000"
dir = "instances"

[[principals]]
access_key_id = "KEY"
secret_access_key = "SECRET"
session_token = "dev"
arn = "arn:aws:sts::123456789012:assumed-role/outstation-agent/dev"
user_id = "AROADEVAGENTROLE00000:dev"

[[launch_templates]]
name = "outstation-node"
id = "lt-0123456789abcdef0"
version = 1
user_data = "user-data.sh"
"#;

#[rustfmt::skip]
const AWS_SIM: Table = &[
    ("no configuration", Missing("sim.toml"), "exit 1",
        "read *sim.toml: No such file", "check the path"),
    ("a configuration that is none", File("sim.toml", b"<xml/>"), "exit 1",
        "*sim.toml: line 1 (<xml/>)", "compare the configuration"),
    ("an entry too many", Config("account =", "colour = 1\naccount ="), "exit 1",
        "line 2 (colour = 1): unknown field `colour`", "compare the configuration"),
    ("an account of 3 digits", Config("\"123456789012\"", "\"123\""), "exit 1",
        "account must be 12 digits", "compare the configuration"),
    ("instances on the network", Config("127.127.0.0", "10.0.0.0"), "exit 1",
        "instance_net must be below 127.0.0.0/8", "compare the configuration"),
    ("too few addresses", Config("127.127.0.0", "127.127.1.0"), "exit 1",
        "instance_net must be a /16", "compare the configuration"),
    ("its port in use", Do(|p, _| p.taken("TCP", LISTEN, |a| format!("listen = \"{a}\""))), "exit 1",
        "cannot listen on 127.0.0.1:*Address already in use", "stop the process that has the port"),
    ("a file for its folder", Kind("instances"), "exit 1",
        "create *instances", "a file stands where there must be a folder"),
    ("a folder that cannot be written", ReadOnly("instances"), "exit 1",
        "Read-only file system", "set `dir` to a place that can be written"),
    ("somebody else's folder", Nobody, "exit 1",
        "Permission denied", "user that owns the path"),
];

fn good_aws() -> Result<Place> {
    let credentials = agent_credentials();
    let text = AWS
        .replace("KEY", &credentials["AWS_ACCESS_KEY_ID"])
        .replace("SECRET", &credentials["AWS_SECRET_ACCESS_KEY"]);
    let place = Place::new("aws-sim", &["serve"])?.with_config("sim.toml", &text)?;
    std::fs::create_dir_all(place.path("instances"))?;
    std::fs::write(place.path("instances/kept.log"), "of an instance that was")?;
    std::fs::write(place.path("user-data.sh"), "#!/bin/sh\n")?;
    Ok(place)
}

/// Its endpoint, for as long as `place` is there.
pub fn aws_beside(place: &Place) -> Result<String> {
    let aws = good_aws()?;
    // Free at this moment; whoever takes it meanwhile makes the start fail.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    aws.change_config(LISTEN, &format!("listen = \"{address}\""))?;
    place.start_beside(&mut aws.command(), "simulated AWS listens")?;
    Ok(format!("http://{address}"))
}

#[test]
fn a_simulated_aws_that_cannot_work_says_why() -> Result<()> {
    judge(&good_aws()?, &[AWS_SIM])?.finish()
}

#[rustfmt::skip]
const TRANSFORM_SERVER: Table = &[
    ("no interpreter", Do(|p, c| server(p, c, "/nowhere/python", "bundle", "127.0.0.1:0")), "exit 1",
        "there is no Python interpreter at /nowhere/python", "--python takes the path"),
    ("an interpreter that does not run", Do(|p, c| server(p, c, "bundle/features.py", "bundle", "127.0.0.1:0")), "exit 1",
        "there is no Python interpreter at bundle/features.py", "--python takes the path"),
    ("no bundle", Do(|p, c| server(p, c, "PYTHON", "nowhere", "127.0.0.1:0")), "exit 1",
        "there is no bundle folder at nowhere", "--bundle takes the folder"),
    ("a file for the bundle", Do(|p, c| server(p, c, "PYTHON", "bundle/features.py", "127.0.0.1:0")), "exit 1",
        "there is no bundle folder at bundle/features.py", "--bundle takes the folder"),
    ("an address of another machine", Do(|p, c| server(p, c, "PYTHON", "bundle", "192.0.2.1:7400")), "exit 1",
        "cannot listen on 192.0.2.1:7400", "--listen takes an address of this machine"),
    ("an interpreter that is another program", Do(|p, c| server(p, c, "/bin/true", "bundle", "127.0.0.1:0")), "goes on",
        "not serving*reason=", ""),
    ("a bundle that raises", Do(raising_bundle), "goes on",
        "this target is broken and answers with its error*target=\"speed\"", ""),
];

fn good_server() -> Result<Place> {
    let place = Place::new("outstation-transform-server", &[])?;
    std::fs::create_dir_all(place.path("bundle"))?;
    std::fs::write(place.path("bundle/features.py"), "x = 1\n")?;
    Ok(place)
}

fn server(_: &Place, command: &mut Command, python_: &str, bundle: &str, at: &str) -> Result<()> {
    let interpreter = python_.replace("PYTHON", &python().display().to_string());
    command.args(["--listen", at, "--python", &interpreter, "--bundle", bundle]);
    Ok(())
}

fn raising_bundle(place: &Place, command: &mut Command) -> Result<()> {
    std::fs::write(
        place.path("bundle/features.py"),
        "import pandsa\nFeatureService(name=\"speed\")\n",
    )?;
    server(place, command, "PYTHON", "bundle", "127.0.0.1:0")
}

#[test]
fn a_transform_server_that_cannot_work_says_why() -> Result<()> {
    judge(&good_server()?, &[TRANSFORM_SERVER])?.finish()
}

#[rustfmt::skip]
const RUNNER: Table = &[
    ("no Python", Do(|p, c| path(p, c, "")), "exit 1",
        "there is no python3 on the path*No such file", "install Python 3.9 or newer"),
    ("Python of ten years ago", Do(|p, c| path(p, c, "echo /usr/bin/python2; echo 2.7.18")), "exit 1",
        "python3 is 2.7.18, older than 3.9", "install Python 3.9 or newer"),
    ("Python one release too old", Do(|p, c| path(p, c, "echo /usr/bin/python3; echo 3.8.20")), "exit 1",
        "python3 is 3.8.20, older than 3.9", "install Python 3.9 or newer"),
    ("Python that does not start", Do(|p, c| path(p, c, "echo 'libpython3.so: cannot open' >&2; exit 127")), "exit 1",
        "python3 does not start*libpython3.so: cannot open", "install Python 3.9 or newer"),
    ("a command that there is not", Do(|_, c| { c.arg("deploy"); Ok(()) }), "exit 1",
        "\"deploy\" is neither dev nor verify", "cargo dev | cargo verify"),
];

/// Its `python3` is this script, and there is nothing else.
fn path(place: &Place, command: &mut Command, script: &str) -> Result<()> {
    command.arg("dev").env("PATH", place.path("bin"));
    if !script.is_empty() {
        let program = place.path("bin/python3");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n"))?;
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

#[test]
fn the_two_commands_say_what_python_they_need() -> Result<()> {
    let place = Place::new("outstation-runner", &[])?;
    std::fs::create_dir_all(place.path("bin"))?;
    assert!(binaries().join("outstation-runner").is_file(), "cargo build --workspace --bins");
    judge(&place, &[RUNNER])?.finish()
}

#[test]
fn what_goes_on_would_be_noticed_if_it_ended() -> Result<()> {
    let place = good_aws()?;
    let said = run_until_told(&mut place.command(), "simulated AWS listens")?;
    assert_eq!(said.ends, "goes on", "{said:?}");
    std::fs::remove_file(place.path("sim.toml"))?;
    let said = run_until_told(&mut place.command(), "simulated AWS listens")?;
    assert_eq!(said.ends, "exit status: 1", "{said:?}");
    Ok(())
}
