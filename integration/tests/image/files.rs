//! The units, the firewall and the user-data, as the tools of their kind judge them.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::unistd::Uid;
use outstation_integration::debian;

use crate::instance::image;

const UNITS: [&str; 2] = ["outstation-node.service", "outstation-metadata.service"];
/// `systemd-analyze security`: 10 is nothing held back. What is left is for a supervisor that starts and
/// ends processes of another user.
const EXPOSURE_MAX: f64 = 3.2;

fn judge(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("start {program}"))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(output.status.success(), "{program} {arguments:?}: {said}");
    Ok(said)
}

#[test]
fn the_units_are_valid_and_hold_back_what_they_can() -> Result<()> {
    if !debian::program("systemd-analyze", "systemd") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    for unit in UNITS {
        // The programs are on the image, not here.
        let text = fs::read_to_string(image(unit))?;
        let text = text.replace("/usr/bin/outstation-agent", "/bin/true");
        fs::write(folder.path().join(unit), text.replace("/usr/sbin/nft", "/bin/true"))?;
    }
    let path = |unit: &str| folder.path().join(unit).display().to_string();
    let said = judge("systemd-analyze", &["verify", &path(UNITS[0]), &path(UNITS[1])])?;
    ensure!(said.is_empty(), "{said}");
    let said =
        judge("systemd-analyze", &["security", "--offline=yes", "--no-pager", &path(UNITS[0])])?;
    let score = said
        .rsplit_once("exposure level for")
        .and_then(|(_, rest)| rest.split(' ').find_map(|word| word.parse::<f64>().ok()));
    println!("exposure of the node agent's unit: {score:?}");
    ensure!(score.is_some_and(|score| score <= EXPOSURE_MAX), "{said}");
    Ok(())
}

#[test]
fn the_firewall_is_valid_and_loads_twice() -> Result<()> {
    if !Uid::effective().is_root() {
        eprintln!("LEFT OUT: the firewall's rules take root, for a network namespace");
        return Ok(());
    }
    if !debian::program("nft", "nftables") {
        return Ok(());
    }
    let rules = image("outstation-metadata.nft").display().to_string();
    let script = format!("nft -f '{rules}' && nft -f '{rules}' && nft list ruleset");
    let said = judge("unshare", &["--net", "--", "sh", "-c", &script])?;
    ensure!(said.matches("table inet outstation_metadata").count() == 1, "{said}");
    Ok(())
}

#[test]
fn the_user_data_is_short_and_clean() -> Result<()> {
    let path = image("user-data.sh");
    let text = fs::read_to_string(&path)?;
    let says = |line: &&str| !line.starts_with('#') && !line.trim().is_empty();
    let lines = text.lines().filter(says).count();
    ensure!(lines <= 10, "{lines} lines");
    // What it is filled with are names and addresses.
    let filled: Vec<&str> = text.split('@').skip(1).step_by(2).collect();
    assert_eq!(filled, ["ACCOUNT_AGENT", "STORE", "ACCOUNT", "REGION"]);
    // And what it writes is what the unit reads.
    let unit = fs::read_to_string(image(UNITS[0]))?;
    for name in filled {
        ensure!(unit.contains(&format!("${{OUTSTATION_{name}}}")), "{name} is not read");
    }
    if debian::program("shellcheck", "shellcheck") {
        judge("shellcheck", &[Path::new(&path).to_str().context("a path")?])?;
    }
    Ok(())
}
