//! Environments that are not what they say, crashes and disks; what a machine does with them.

use std::os::unix::fs::{FileExt as _, PermissionsExt as _};

use outstation_protocol::environment;

use super::*;
use crate::node::testing;

const FILES: [(&str, &[u8]); 3] =
    [("bin/tool", b"#!/bin/sh\n"), ("lib/a.py", b"x = 1\n"), ("lib/deep/b.py", b"y = 2\n")];

struct Place {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().expect("a folder");
        Place { path: folder.path().to_owned(), _folder: folder }
    }

    fn put(&self, files: &[(&str, &[u8])]) -> Digest {
        testing::put_files(&self.path.join("store"), files)
    }

    /// As after a start of the agent.
    fn environments(&self) -> Environments {
        testing::environments(&self.path)
    }

    fn stored(&self, digest: &Digest, extension: &str) -> PathBuf {
        let name = format!("{}.{extension}", digest.hex());
        self.path.join("store/artifacts/environments").join(name)
    }

    fn flip(&self, digest: &Digest, extension: &str, at: u64) {
        let path = self.stored(digest, extension);
        let file = File::options().read(true).write(true).open(path).expect("there");
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("as long");
        file.write_all_at(&[byte[0] ^ 1], at).expect("writable");
    }

    fn installed(&self, digest: &Digest) -> PathBuf {
        self.path.join("environments").join(digest.hex())
    }

    fn wait_until_synced(&self, digest: &Digest) {
        let marker = self.path.join("environments").join(format!(".{}.synced", digest.hex()));
        let until = clock::now() + Duration::from_secs(30);
        while !marker.exists() {
            assert!(clock::now() < until, "not synced within 30 s");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn an_honest_environment_is_fetched_once() {
    let place = Place::new();
    let digest = place.put(&FILES);
    let environments = place.environments();
    let progress = environments.install(&digest).expect("honest");
    assert_eq!(progress, Progress { bytes: 22, bytes_fetched: 22 });
    let folder = place.installed(&digest);
    for (path, contents) in FILES {
        assert_eq!(fs::read(folder.join(path)).expect("there"), contents, "{path}");
    }
    let mode = |path: &str| folder.join(path).metadata().expect("there").permissions().mode();
    assert_eq!((mode("bin/tool") & 0o777, mode("lib/a.py") & 0o777), (0o755, 0o644));
    let config = fs::read_to_string(folder.join("pyvenv.cfg")).expect("there");
    assert!(config.contains("include-system-site-packages = false"), "{config}");
    assert!(environments.python(&digest).exists());

    // Gone from the store: what was verified here serves on, also after a restart.
    place.wait_until_synced(&digest);
    fs::remove_dir_all(place.path.join("store")).expect("there");
    assert_eq!(environments.install(&digest).expect("there"), Progress::default());
    assert_eq!(place.environments().install(&digest).expect("there"), Progress::default());
}

#[test]
fn one_flipped_byte_anywhere_is_refused_and_the_right_ones_heal_it() {
    let place = Place::new();
    let digest = place.put(&FILES);
    for at in 0..22 {
        place.flip(&digest, "pack", at);
        let error = place.environments().install(&digest).expect_err("another byte").to_string();
        assert!(error.contains("has other contents") && error.contains("file "), "{error}");
        assert!(!place.installed(&digest).exists(), "byte {at}");
        place.flip(&digest, "pack", at);
    }
    let length = fs::metadata(place.stored(&digest, "json")).expect("there").len();
    for at in (0..length).step_by(7) {
        place.flip(&digest, "json", at);
        let error = place.environments().install(&digest).expect_err("another byte").to_string();
        assert!(error.starts_with("the manifest of environment"), "{error}");
        place.flip(&digest, "json", at);
    }
    place.environments().install(&digest).expect("honest again");
}

#[test]
fn what_was_put_under_another_name_or_cut_is_refused() {
    let place = Place::new();
    let (right, other) = (place.put(&FILES), place.put(&FILES[..1]));
    for (extension, wanted) in [("pack", "its manifest says 22"), ("json", "has other contents")] {
        fs::copy(place.stored(&other, extension), place.stored(&right, extension)).expect("copied");
        let error = place.environments().install(&right).expect_err("another's").to_string();
        assert!(error.contains(wanted), "{error}");
    }
    let digest = place.put(&FILES);
    let pack = File::options().write(true).open(place.stored(&digest, "pack")).expect("there");
    for length in [0, 21, 23] {
        pack.set_len(length).expect("writable");
        let error = place.environments().install(&digest).expect_err("another length");
        assert!(matches!(error, EnvironmentError::Size { wanted: 22, .. }), "{error}");
    }
    fs::remove_file(place.stored(&digest, "pack")).expect("there");
    let error = place.environments().install(&digest).expect_err("no pack").to_string();
    assert!(error.contains("`outstation apply` writes it"), "{error}");
    let error = place.environments().install(&Digest::of(b"unknown")).expect_err("unknown");
    assert!(matches!(error, EnvironmentError::Missing { .. }), "{error}");
}

#[test]
fn a_manifest_of_the_right_digest_is_not_believed_either() {
    let place = Place::new();
    let store = place.path.join("store");
    let with = |change: fn(&mut environment::Manifest)| {
        let mut manifest = testing::manifest(&FILES);
        change(&mut manifest);
        let digest = testing::put(&store, &manifest, b"");
        let error = anyhow::Error::from(place.environments().install(&digest).expect_err("bad"));
        format!("{error:#}")
    };
    for (why, wanted) in [
        (with(|m| m.files[1].path = "../evil.py".into()), "leads elsewhere"),
        (with(|m| m.files[2].path = "/etc/evil.py".into()), "is absolute"),
        (with(|m| m.files[0].path = "bin/python".into()), "is the node's own to make"),
        (with(|m| m.machine = "mips".into()), "is for mips and this machine is"),
        (with(|m| m.python = "2.7".into()), "needs Python 2.7, and this machine has 3.11"),
        (with(|m| m.worker_protocol = 99), "speaks version 99"),
        (with(|m| m.format = 99), "its format is 99"),
        (with(|m| m.files[0].bytes = 1 << 50), "more than"),
    ] {
        assert!(why.contains(wanted), "{why}");
    }
    assert!(!place.path.join("evil.py").exists());
}

#[test]
fn a_torn_environment_is_mended_from_what_is_whole_of_it() {
    let place = Place::new();
    // Larger than what is read at once, and between small ones.
    let large = vec![7; 9 * 1024 * 1024];
    let files: [(&str, &[u8]); 4] =
        [("a.py", b"a"), ("lib/large.so", &large), ("lib/m.py", b"m"), ("z.py", b"z")];
    let digest = place.put(&files);
    let whole = (large.len() + 3) as u64;
    let progress = place.environments().install(&digest).expect("honest");
    assert_eq!(progress, Progress { bytes: whole, bytes_fetched: whole });
    place.wait_until_synced(&digest);

    // A power cut before the marker: a file is empty, another has other bytes, a third is gone.
    let torn = |path: &str, bytes: &[u8]| {
        let marker = place.path.join("environments").join(format!(".{}.synced", digest.hex()));
        fs::remove_file(marker).expect("there");
        fs::write(place.installed(&digest).join(path), bytes).expect("writable");
        let progress = place.environments().install(&digest).expect("mended");
        assert_eq!(fs::read(place.installed(&digest).join("lib/large.so")).expect("there"), large);
        assert_eq!(fs::read(place.installed(&digest).join("z.py")).expect("there"), b"z");
        place.wait_until_synced(&digest);
        progress.bytes_fetched
    };
    assert_eq!(torn("z.py", b""), 2, "the run of small files that it is in");
    assert_eq!(torn("lib/m.py", b"?"), 2);
    assert_eq!(torn("lib/large.so", &large[1..]), large.len() as u64);
    assert_eq!(torn("pyvenv.cfg", b""), 0, "what the node makes itself is made again");
    // Without the account store nothing can be checked: an error, not a guess.
    let marker = place.path.join("environments").join(format!(".{}.synced", digest.hex()));
    fs::remove_file(marker).expect("there");
    fs::rename(place.path.join("store"), place.path.join("away")).expect("renamed");
    let error = place.environments().install(&digest).expect_err("nobody knows");
    assert!(matches!(error, EnvironmentError::Missing { .. }), "{error}");
    fs::rename(place.path.join("away"), place.path.join("store")).expect("renamed");
    place.environments().install(&digest).expect("known again");
}

/// An agent that was killed right behind the rename comes back, and the server that it had started runs on.
#[test]
fn what_is_whole_stays_where_a_server_may_run_from_it() {
    let place = Place::new();
    let digest = place.put(&FILES);
    place.environments().install(&digest).expect("honest");
    place.wait_until_synced(&digest);
    let marker = place.path.join("environments").join(format!(".{}.synced", digest.hex()));
    fs::remove_file(marker).expect("there");
    let of = |path: &Path| path.metadata().map(|of| (of.ino(), of.ctime_nsec())).expect("there");
    let before = of(&place.installed(&digest));
    // Also while the account store no longer has the files themselves.
    fs::remove_file(place.stored(&digest, "pack")).expect("there");
    let progress = place.environments().install(&digest).expect("whole");
    assert_eq!(progress, Progress { bytes: 22, bytes_fetched: 0 });
    assert_eq!(of(&place.installed(&digest)), before, "it was not moved");
    place.wait_until_synced(&digest);
}

#[test]
fn what_nobody_uses_goes_and_what_another_node_uses_stays() {
    let place = Place::new();
    let numbers: Vec<String> = (0..8).map(|n| format!("n = {n}\n")).collect();
    let digests: Vec<Digest> =
        numbers.iter().map(|text| place.put(&[("lib/n.py", text.as_bytes())])).collect();
    let (one, other) = (place.environments(), place.environments());
    for digest in &digests {
        one.install(digest).expect("honest");
        place.wait_until_synced(digest);
    }
    // The one that was used longest ago, and another node still uses it.
    other.install(&digests[0]).expect("there");
    let lock = place.path.join("environments").join(format!(".{}.lock", digests[0].hex()));
    let lock = File::options().write(true).open(lock).expect("there");
    lock.set_modified(SystemTime::UNIX_EPOCH).expect("ours");
    one.prune(&[digests[7]]);
    let there: Vec<bool> = digests.iter().map(|d| place.installed(d).exists()).collect();
    assert_eq!(there, [true, false, false, false, true, true, true, true]);
    // Gone from here, it is fetched again.
    assert!(one.install(&digests[1]).expect("fetched").bytes_fetched > 0);
    // Let go by the other as well.
    other.prune(&[]);
    assert!(!place.installed(&digests[0]).exists());
}
