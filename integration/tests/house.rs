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
        ("sts", &["protocol"]),
        ("agent", &["protocol", "api", "sts"]),
        ("broker", &["protocol", "api", "sts"]),
        ("transform-server", &["api"]),
        ("transform-client", &["api"]),
        ("cli", &["protocol", "api", "transform-client"]),
        ("cli/runner", &[]),
        ("sdk/native", &[]),
        ("integration/load", &["transform-client"]),
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

/// Every `const …_MAX` of the sources, of tests and of what only they use left out.
fn bounds() -> BTreeMap<String, BTreeSet<String>> {
    let mut bounds: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of ours").flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            let left_out = ["target", "tests", "integration", "examples", "build", "runner"];
            if path.is_dir() {
                if !name.starts_with('.') && !left_out.contains(&name.as_str()) {
                    folders.push(path);
                }
                continue;
            }
            let is_test = name.contains("_tests.") || name == "testing.rs";
            let is_source = name.ends_with(".rs") || name.ends_with(".py");
            if is_test || !is_source {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("a source of ours");
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            for line in code.lines() {
                if let Some(bound) = bound_of(line, name.ends_with(".py")) {
                    let path = path.strip_prefix(root()).expect("below it");
                    let path = path.to_string_lossy().into_owned();
                    bounds.entry(path).or_default().insert(bound.to_owned());
                }
            }
        }
    }
    bounds
}

/// `pub const NAME_MAX: usize = …` in Rust, `NAME_MAX = …` in Python.
fn bound_of(line: &str, is_python: bool) -> Option<&str> {
    let rest = if is_python {
        line
    } else {
        line.trim_start()
            .trim_start_matches("pub ")
            .trim_start_matches("pub(crate) ")
            .strip_prefix("const ")?
    };
    let end = rest.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))?;
    let (name, after) = rest.split_at(end);
    let after = after.trim_start();
    let is_definition = match is_python {
        true => after.starts_with('=') && !after.starts_with("=="),
        false => after.starts_with(':'),
    };
    let is_bound = name.split('_').any(|word| word == "MAX");
    (is_definition && is_bound).then_some(name)
}

#[test]
fn every_bound_stands_on_its_page_with_its_file() {
    let page = std::fs::read_to_string(root().join("docs/LIMITS.md")).expect("the page");
    let bounds = bounds();
    assert!(bounds.values().map(BTreeSet::len).sum::<usize>() > 100, "{bounds:#?}");
    let mut missing = Vec::new();
    for (path, names) in &bounds {
        for name in names {
            let named = |line: &str| line.contains(&format!("`{name}`")) && line.contains(path);
            if !page.lines().any(named) {
                missing.push(format!("{name} of {path}"));
            }
        }
    }
    assert!(missing.is_empty(), "docs/LIMITS.md does not name {missing:#?}");
    // And what the page names is there.
    for line in page.lines().filter(|line| line.starts_with("| ")) {
        let mut words: Vec<&str> = line.split('`').skip(1).step_by(2).collect();
        words.retain(|word| word.ends_with("_MAX"));
        for word in words {
            let is_there = bounds.values().any(|names| names.contains(word));
            assert!(is_there, "no source has {word}: {line}");
        }
    }
}

#[test]
fn a_bound_is_found_in_every_form() {
    for (line, is_python, wanted) in [
        ("pub const FRAME_BYTES_MAX: usize = 1;", false, Some("FRAME_BYTES_MAX")),
        ("    const MAX: Duration = X;", false, Some("MAX")),
        ("pub(crate) const HELLO_MAX: u8 = 1;", false, Some("HELLO_MAX")),
        ("const BACKOFF_MAX_DOWN: u8 = 1;", false, Some("BACKOFF_MAX_DOWN")),
        ("let HELLO_MAX: u8 = 1;", false, None),
        ("const MAXIMUM: u8 = 1;", false, None),
        ("_NAMES_MAX = 4096", true, Some("_NAMES_MAX")),
        ("    if size > FRAME_BYTES_MAX:", true, None),
        ("ROWS_MAX == 3", true, None),
    ] {
        assert_eq!(bound_of(line, is_python), wanted, "{line}");
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
