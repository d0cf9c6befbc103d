//! Tools of the system that tests need and a new machine may lack.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use nix::unistd::Uid;

/// Two installations at once are refused by the package manager itself.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Has the program there, or says loudly that what needs it was left out.
pub fn program(name: &str, package: &str) -> bool {
    let _turn = ONE_AT_A_TIME.lock();
    if is_there(name) {
        return true;
    }
    if Uid::effective().is_root() && Path::new("/usr/bin/apt-get").exists() {
        // Of tests in several processes one at a time installs.
        let lock = std::env::temp_dir().join("outstation-apt.lock");
        let lock = std::fs::File::create(lock).and_then(|lock| lock.lock().map(|()| lock));
        let install = |args: &[&str]| {
            Command::new("timeout")
                .args(["300", "/usr/bin/apt-get", "-q", "-y"])
                .args(args)
                .env("DEBIAN_FRONTEND", "noninteractive")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
        };
        let wanted = ["install", "--no-install-recommends", package];
        if !is_there(name) && !install(&wanted) {
            install(&["update"]);
            install(&wanted);
        }
        drop(lock);
    }
    let there = is_there(name);
    if !there {
        eprintln!("LEFT OUT: {name} is not there and the package {package} cannot be installed");
    }
    there
}

fn is_there(name: &str) -> bool {
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .any(|folder| Path::new(folder).join(name).exists())
}
