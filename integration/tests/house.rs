//! The rules of the house that a machine can check: which crates may know which, and that there
//! is one of everything that there should be one of.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// Normal dependencies on crates of this workspace, by folder.
fn own_dependencies(folder: &str) -> BTreeSet<String> {
    let path = root().join(folder).join("Cargo.toml");
    let text = std::fs::read_to_string(&path).expect("every member has a manifest");
    let manifest: toml::Table = text.parse().expect("cargo has read it already");
    let dependencies = manifest.get("dependencies").and_then(|d| d.as_table()).cloned();
    dependencies
        .unwrap_or_default()
        .keys()
        .filter_map(|name| name.strip_prefix("outstation-"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn dependencies_point_in_one_direction() {
    let allowed: BTreeMap<&str, &[&str]> = [
        ("protocol", &[][..]),
        ("api", &[]),
        ("aws-sim", &[]),
        ("agent", &["protocol", "api"]),
        ("broker", &["protocol", "api"]),
        ("transform-server", &["api"]),
        ("transform-client", &["api"]),
        ("cli", &["protocol", "api", "transform-client"]),
        ("cli/runner", &[]),
    ]
    .into();
    for (folder, allowed) in allowed {
        let found = own_dependencies(folder);
        let strangers: Vec<&String> =
            found.iter().filter(|name| !allowed.contains(&name.as_str())).collect();
        assert!(strangers.is_empty(), "{folder} must not know {strangers:?}");
    }
}

#[test]
fn the_protocol_knows_no_sockets_and_no_cloud() {
    let tree = tree(&["--package", "outstation-protocol"]);
    for name in ["tokio", "quinn", "hyper", "aws-config", "rustls"] {
        assert!(!tree.contains_key(name), "outstation-protocol must not depend on {name}");
    }
}

#[test]
fn there_is_one_of_each() {
    let tree = tree(&["--workspace"]);
    for name in ["rustls", "hyper", "http", "h2", "tokio", "quinn", "tonic", "prost", "aws-lc-rs"] {
        let versions = &tree[name];
        assert_eq!(versions.len(), 1, "{name} is there in versions {versions:?}");
    }
    for name in ["ring", "openssl", "native-tls", "async-std", "reqwest", "actix-web"] {
        assert!(!tree.contains_key(name), "{name} is a second stack: {:?}", tree[name]);
    }
}

/// Everything that is built for this machine: name → versions.
fn tree(selection: &[&str]) -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--edges", "normal,build", "--prefix", "none"])
        .args(selection)
        .current_dir(root())
        .output()
        .expect("cargo runs this test, so it is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut tree: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let mut words = line.split(' ');
        if let (Some(name), Some(version)) = (words.next(), words.next()) {
            tree.entry(name.to_owned()).or_default().insert(version.to_owned());
        }
    }
    tree
}
