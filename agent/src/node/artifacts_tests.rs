//! Bundles that are not what they say, and what a node does with them.

use outstation_protocol::Generation;

use super::*;
use crate::node::testing;

/// An account store with one environment, and a node's folder.
struct Place {
    _folder: tempfile::TempDir,
    root: PathBuf,
    environment: Digest,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().to_owned();
        let environment = testing::put_files(&root.join("store"), &[("lib/a.py", b"a = 1")]);
        fs::create_dir_all(root.join("store/artifacts/bundles")).expect("creates");
        Place { _folder: folder, root, environment }
    }

    fn store(&self) -> ArtifactStore {
        let environments = testing::environments(&self.root);
        ArtifactStore::new(
            AccountStore::folder(&self.root.join("store")),
            &self.root.join("node"),
            environments,
        )
    }

    /// Puts these bytes into the store under the digest of `named_after`.
    fn put(&self, tar: &[u8], named_after: &[u8]) -> Artifacts {
        let bundle = Digest::of(named_after);
        let path = self.root.join("store/artifacts/bundles").join(format!("{}.tar", bundle.hex()));
        fs::write(path, tar).expect("writes");
        let environment = self.environment;
        Artifacts { generation: Generation(1), environment, bundle, options: vec![] }
    }
}

/// A tar whose entries are written as told, also where no honest packer would.
fn tar(entries: &[(EntryType, &str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (kind, path, contents) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        if *kind == EntryType::Symlink || *kind == EntryType::Link {
            header.set_link_name("/etc/passwd").expect("short");
            header.set_size(0);
        } else {
            header.set_size(contents.len() as u64);
        }
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        let contents = if header.size().expect("set above") == 0 { &[][..] } else { contents };
        builder.append(&header, contents).expect("appends");
    }
    builder.into_inner().expect("ends")
}

fn prepare(place: &Place, artifacts: &Artifacts) -> Result<Prepared, ArtifactError> {
    place.store().fetch(artifacts)?;
    place.store().verify(artifacts)
}

#[test]
fn an_honest_bundle_is_unpacked_once() {
    let place = Place::new();
    let bytes = tar(&[
        (EntryType::Regular, "features.py", b"x = 1"),
        (EntryType::Directory, "package/", b""),
        (EntryType::Regular, "package/deep/module.py", b"y = 2"),
    ]);
    let artifacts = place.put(&bytes, &bytes);
    let prepared = prepare(&place, &artifacts).expect("prepared");
    assert_eq!(fs::read(prepared.bundle.join("features.py")).expect("there"), b"x = 1");
    assert_eq!(fs::read(prepared.bundle.join("package/deep/module.py")).expect("there"), b"y = 2");
    assert_eq!(
        prepared.python,
        place.root.join("environments").join(artifacts.environment.hex()).join("bin/python")
    );
    let left = fs::read_dir(place.root.join("node/bundles")).expect("there").count();
    assert_eq!(left, 1, "neither download nor unfinished folder stay");

    // Gone from the store: what was verified here serves on.
    fs::remove_dir_all(place.root.join("store/artifacts/bundles")).expect("there");
    assert_eq!(prepare(&place, &artifacts).expect("still prepared"), prepared);

    place.store().prune(&[&artifacts]);
    assert!(prepared.bundle.is_dir());
    place.store().prune(&[]);
    assert!(!prepared.bundle.exists());
}

#[test]
fn a_bundle_that_is_not_what_was_ordered_is_refused() {
    let place = Place::new();
    let honest = tar(&[(EntryType::Regular, "features.py", b"x = 1")]);
    let mut tampered = honest.clone();
    tampered[512] ^= 1;
    let many: Vec<_> = (0..=ENTRIES_MAX).map(|n| format!("f{n}.py")).collect();
    let many: Vec<_> = many.iter().map(|n| (EntryType::Regular, n.as_str(), &b""[..])).collect();
    let deep = "d/".repeat(DEPTH_MAX) + "f.py";
    let file = EntryType::Regular;
    for (name, bytes, wanted) in [
        ("upward", tar(&[(file, "../evil.py", b"x")]), "leads upward"),
        ("upward inside", tar(&[(file, "a/../../evil.py", b"x")]), "leads upward"),
        ("absolute", tar(&[(file, "/etc/evil", b"x")]), "is absolute"),
        ("symlink", tar(&[(EntryType::Symlink, "link", b"")]), "neither a file nor a folder"),
        ("hard link", tar(&[(EntryType::Link, "link", b"")]), "neither a file nor a folder"),
        ("device", tar(&[(EntryType::Char, "null", b"")]), "neither a file nor a folder"),
        ("pipe", tar(&[(EntryType::Fifo, "pipe", b"")]), "neither a file nor a folder"),
        ("twice", tar(&[(file, "a.py", b"1"), (file, "a.py", b"2")]), "is there twice"),
        ("too many", tar(&many), "more than 10000 entries"),
        ("too deep", tar(&[(file, &deep, b"x")]), "is too deep"),
        ("nothing", tar(&[(EntryType::Directory, "./", b"")]), "path"),
        ("torn", honest[..600].to_vec(), "read the bundle"),
    ] {
        let artifacts = place.put(&bytes, &bytes);
        let error = prepare(&place, &artifacts).expect_err(name).to_string();
        assert!(error.contains(wanted), "{name}: {error}");
        assert!(!place.store().prepared(&artifacts).bundle.exists(), "{name}");
    }
    assert!(!place.root.join("node/evil.py").exists());

    let artifacts = place.put(&tampered, &honest);
    let error = prepare(&place, &artifacts).expect_err("one bit");
    assert!(matches!(error, ArtifactError::Digest { .. }), "{error}");
    // The right bytes under the right name heal it.
    prepare(&place, &place.put(&honest, &honest)).expect("prepared");
}

#[test]
fn what_the_account_store_does_not_have_is_named() {
    let place = Place::new();
    let bytes = tar(&[(EntryType::Regular, "features.py", b"x = 1")]);
    let artifacts = place.put(&bytes, &bytes);
    let unknown = Artifacts { environment: Digest::of(b"unknown"), ..artifacts.clone() };
    let error = prepare(&place, &unknown).expect_err("no such environment").to_string();
    assert!(error.starts_with("the account store has no environment sha256:"), "{error}");
    let unknown = Artifacts { bundle: Digest::of(b"unknown"), ..artifacts };
    let error = prepare(&place, &unknown).expect_err("no such bundle").to_string();
    assert!(error.starts_with("the account store has no bundle sha256:"), "{error}");
}
