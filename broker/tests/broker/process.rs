//! The program: what it prints, and how it ends.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, Stdio};

fn start(config: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_outstation-broker"))
        .arg("--config")
        .arg(config)
        .env_remove("RUST_LOG")
        .stderr(Stdio::piped())
        .spawn()
        .expect("the broker starts")
}

fn write_config(dir: &Path, link: &str, admin: &str) -> std::path::PathBuf {
    let path = dir.join("broker.toml");
    let text = format!(
        r#"
            state = "{dir}/state"
            tenant = "dev"
            [link]
            listen = "{link}"
            [admin]
            listen = "{admin}"
            token_file = "{dir}/admin.token"
            [[data_planes]]
            account = "123456789012"
            region = "eu-central-1"
        "#,
        dir = dir.display()
    );
    std::fs::write(&path, text).expect("write the configuration");
    path
}

#[test]
fn a_start_that_fails_says_what_and_what_to_do() {
    let holder = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let taken = holder.local_addr().expect("its address").to_string();
    for (link, admin, wanted) in [
        (
            taken.as_str(),
            "127.0.0.1:0",
            ["error: cannot listen on 127.0.0.1:", "hint: stop the process"],
        ),
        (
            "127.0.0.1:0",
            "0.0.0.0:0",
            [
                "error: the admin API would listen on 0.0.0.0:0",
                "hint: set [admin] listen to a loopback",
            ],
        ),
        ("nonsense", "127.0.0.1:0", ["error: the configuration ", "hint: correct the line"]),
    ] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let output = start(&write_config(dir.path(), link, admin))
            .wait_with_output()
            .expect("the broker ends");
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stderr).expect("UTF-8");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "two lines: {text}");
        for (line, wanted) in lines.iter().zip(wanted) {
            assert!(line.starts_with(wanted), "{line:?} should start with {wanted:?}");
        }
    }
}

#[test]
fn a_signal_ends_it_well() {
    for signal in ["TERM", "INT"] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut broker = start(&write_config(dir.path(), "127.0.0.1:0", "127.0.0.1:0"));
        let mut log = BufReader::new(broker.stderr.take().expect("piped"));
        let mut line = String::new();
        log.read_line(&mut line).expect("a line");
        assert!(line.contains("listening") && !line.contains('\u{1b}'), "{line:?}");
        assert!(dir.path().join("state/root.pem").exists(), "the root is there before it listens");
        let killed = Command::new("kill")
            .args(["-s", signal, &broker.id().to_string()])
            .status()
            .expect("kill runs");
        assert!(killed.success());
        let mut rest = String::new();
        log.read_to_string(&mut rest).expect("the rest of the log");
        assert!(rest.contains("stopping"), "{rest:?}");
        assert_eq!(broker.wait().expect("it ends").code(), Some(0), "{rest}");
    }
}
