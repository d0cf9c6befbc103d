//! Declarations through a real interpreter. `cargo verify` names one; without it these say that
//! they were left out.

use std::fs;
use std::path::{Path, PathBuf};

use outstation_cli::artifacts::{Repo, environment};
use outstation_cli::declarations;
use outstation_cli::message::two_lines;
use outstation_protocol::Digest;
use outstation_protocol::environment::Manifest;

fn python() -> Option<PathBuf> {
    let python = std::env::var_os("OUTSTATION_TEST_PYTHON").map(PathBuf::from);
    if python.is_none() {
        eprintln!("left out: OUTSTATION_TEST_PYTHON is not set (cargo verify sets it)");
    }
    python
}

fn repo(features: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("features.py"), features).expect("written");
    fs::write(dir.path().join("requirements.txt"), "# nothing\n").expect("written");
    dir
}

const GROUP: &str = "
from outstation import Environment, ProvisionedScalingConfig, TransformServerGroup
Environment(name='plain', requirements='requirements.txt')
TransformServerGroup(name='tsg', environment='plain', scaling_config=ProvisionedScalingConfig(desired_nodes=2))
";

#[tokio::test]
async fn an_environment_is_built_once_and_can_run_the_worker_package() {
    let Some(python) = python() else { return };
    let dir = repo(GROUP);
    let store = tempfile::tempdir().expect("a store");
    let repo = Repo::load(&python, dir.path()).await.expect("loads");
    let declared = repo.declared().expect("valid");
    let lock = &repo.locks[declared.environments.keys().next().expect("one")];
    assert!(lock.pins.is_empty(), "{lock:?}");

    repo.write(store.path()).await.expect("written");
    assert!(repo.bundle.path(store.path()).is_file());
    let environment = repo.environments.values().next().expect("one");
    let path = environment.path(store.path());
    let bytes = fs::read(&path).expect("a manifest");
    assert_eq!(Digest::of(&bytes), environment.digest);
    let manifest = Manifest::from_bytes(&bytes).expect("honest");
    assert_eq!((&manifest.lock, &manifest.outstation), (&lock.text, &repo.runtime.outstation));
    let names: Vec<&str> = manifest.files.iter().map(|file| file.path.as_str()).collect();
    let has = |end: &str| names.iter().any(|name| name.ends_with(end));
    assert!(has("site-packages/outstation/worker.py") && has(".pyc"), "{names:?}");
    assert!(!has("pyvenv.cfg") && !has("bin/python"), "{names:?}");
    let pack = fs::metadata(path.with_extension("pack")).expect("a pack");
    assert_eq!(pack.len(), manifest.bytes());
    let bill = fs::read_to_string(path.with_extension("cdx.json")).expect("a bill of materials");
    assert!(bill.contains("CycloneDX") && bill.contains("pkg:pypi/outstation@"), "{bill}");
    assert!(!environment.write(store.path()).expect("kept"), "it is there already");

    let again = Repo::load(&python, dir.path()).await.expect("loads");
    assert_eq!(again.declared().expect("valid"), declared);
    // Built anew, somewhere else: the same bytes.
    let elsewhere = tempfile::tempdir().expect("a cache");
    let built = environment::build(lock, &repo.runtime, &python, elsewhere.path()).await;
    assert_eq!(built.expect("built").digest, environment.digest);
}

#[tokio::test]
async fn declarations_see_no_secret_of_the_person_who_applies() {
    let Some(python) = python() else { return };
    let spy = "
import os
seen = sorted(k for k in os.environ if k.startswith(('AWS_', 'OUTSTATION_', 'SSH_', 'CARGO')))
raise ValueError(f'seen {seen} home {os.listdir(os.environ[\"HOME\"])}')
";
    let dir = repo(spy);
    let error = declarations::load(&python, dir.path()).await.expect_err("raises");
    let text = two_lines(&error);
    assert!(text.contains("seen ['AWS_EC2_METADATA_DISABLED'] home []"), "{text}");
    assert!(text.contains("features.py"), "{text}");
}

#[tokio::test]
async fn errors_of_declarations_are_two_lines() {
    let Some(python) = python() else { return };
    let dir = repo(&GROUP.replace("environment='plain'", "environment='other'"));
    let text = two_lines(&declarations::load(&python, dir.path()).await.expect_err("dangles"));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].starts_with("error: ") && lines[0].contains("features.py:4"), "{text}");

    let missing = declarations::load(&python, Path::new("/nonexistent")).await;
    assert!(missing.expect_err("missing").to_string().contains("there is no folder"));
    let bad = declarations::load(Path::new("/nonexistent/python"), dir.path()).await;
    assert!(two_lines(&bad.expect_err("missing")).contains("`python` in the context"));
}

#[tokio::test]
async fn declarations_that_print_too_much_are_refused() {
    let Some(python) = python() else { return };
    let dir = repo("import os\nos.write(2, b'x' * 1_000_000)\n");
    let error = declarations::load(&python, dir.path()).await.expect_err("too much");
    assert!(error.to_string().contains("more than 65536 bytes"), "{error}");
}
