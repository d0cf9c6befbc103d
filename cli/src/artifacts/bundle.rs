//! The bundle: the declarations' folder as one tar whose bytes depend on nothing but the files'
//! names, contents and executable bits.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use outstation_protocol::ids::Digest;

use crate::context::write_atomically;
use crate::message::Failure;

/// Code, not data: what every node fetches before it is ready.
pub const BUNDLE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Deep enough for any package tree; a loop of links cannot occur, links are refused.
const DEPTH_MAX: usize = 32;

pub struct Bundle {
    pub digest: Digest,
    pub tar: Vec<u8>,
}

/// Packs every file below `dir` except hidden ones, caches and virtual environments.
pub fn pack(dir: &Path) -> anyhow::Result<Bundle> {
    let mut files = Vec::new();
    collect(dir, Path::new(""), 0, &mut files)?;
    files.sort();
    let mut tar = tar::Builder::new(Vec::new());
    let mut total = 0u64;
    for relative in files {
        let path = dir.join(&relative);
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        total += bytes.len() as u64;
        if total > BUNDLE_BYTES_MAX {
            return Err(Failure::new(
                format!("the files in {} have more than {BUNDLE_BYTES_MAX} bytes", dir.display()),
                "keep data out of the declarations' folder, or in a hidden subfolder",
            )
            .into());
        }
        let mode = fs::metadata(&path)
            .with_context(|| format!("look at {}", path.display()))?
            .permissions()
            .mode();
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(if mode & 0o111 == 0 { 0o644 } else { 0o755 });
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        tar.append_data(&mut header, &relative, bytes.as_slice())
            .with_context(|| format!("pack {}", path.display()))?;
    }
    let tar = tar.into_inner().context("finish the bundle")?;
    Ok(Bundle { digest: Digest::of(&tar), tar })
}

fn collect(
    root: &Path,
    below: &Path,
    depth: usize,
    files: &mut Vec<PathBuf>,
) -> anyhow::Result<()> {
    let dir = root.join(below);
    if depth > DEPTH_MAX {
        let what = format!("{} is more than {DEPTH_MAX} folders deep", dir.display());
        return Err(Failure::new(what, "flatten the declarations' folder").into());
    }
    for entry in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry.with_context(|| format!("list {}", dir.display()))?;
        let name = entry.file_name();
        let Some(text) = name.to_str() else {
            let what = format!("{} is not named in UTF-8", entry.path().display());
            return Err(Failure::new(what, "rename it").into());
        };
        if text.starts_with('.') || text == "__pycache__" || text.ends_with(".pyc") {
            continue;
        }
        let relative = below.join(text);
        let kind =
            entry.file_type().with_context(|| format!("look at {}", entry.path().display()))?;
        if kind.is_dir() {
            if !entry.path().join("pyvenv.cfg").exists() {
                collect(root, &relative, depth + 1, files)?;
            }
        } else if kind.is_file() {
            files.push(relative);
        } else {
            let what = format!("{} is a link or a device", entry.path().display());
            return Err(Failure::new(what, "a bundle holds files only: copy it in").into());
        }
    }
    Ok(())
}

impl Bundle {
    pub fn path(&self, store: &Path) -> PathBuf {
        store.join("artifacts/bundles").join(format!("{}.tar", self.digest.hex()))
    }

    /// Writes the bundle to the store unless it is there. Says whether it wrote.
    pub fn write(&self, store: &Path) -> anyhow::Result<bool> {
        let path = self.path(store);
        let same_size = fs::metadata(&path).is_ok_and(|meta| meta.len() == self.tar.len() as u64);
        if same_size {
            return Ok(false);
        }
        write_atomically(&path, &self.tar).context("write the bundle to the account store")?;
        // The nodes' servers may run as other users.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
            .with_context(|| format!("make {} readable", path.display()))?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, text: &str) {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().expect("below dir")).expect("directories");
        fs::write(path, text).expect("written");
    }

    fn names(bundle: &Bundle) -> Vec<String> {
        tar::Archive::new(bundle.tar.as_slice())
            .entries()
            .expect("a tar")
            .map(|entry| entry.expect("an entry").path().expect("a path").display().to_string())
            .collect()
    }

    #[test]
    fn the_same_files_give_the_same_bytes_wherever_and_whenever() {
        let (one, two) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
        for (dir, order) in [(&one, ["a.py", "sub/b.py"]), (&two, ["sub/b.py", "a.py"])] {
            for name in order {
                write(dir.path(), name, name);
            }
        }
        for junk in ["__pycache__/a.pyc", ".git/config", "x.pyc", "env/pyvenv.cfg", "env/lib.py"] {
            write(two.path(), junk, "junk");
        }
        let (first, second) = (pack(one.path()).expect("packs"), pack(two.path()).expect("packs"));
        assert_eq!(names(&second), ["a.py", "sub/b.py"]);
        assert_eq!(first.digest, second.digest);

        write(two.path(), "a.py", "changed");
        assert_ne!(pack(two.path()).expect("packs").digest, first.digest);
    }

    #[test]
    fn a_link_is_refused_and_a_bundle_is_written_once() {
        let dir = tempfile::tempdir().expect("dir");
        write(dir.path(), "a.py", "a");
        let bundle = pack(dir.path()).expect("packs");
        let store = tempfile::tempdir().expect("dir");
        assert!(bundle.write(store.path()).expect("written"));
        assert!(!bundle.write(store.path()).expect("kept"));
        assert_eq!(Digest::of(&fs::read(bundle.path(store.path())).expect("read")), bundle.digest);

        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("b")).expect("linked");
        assert!(pack(dir.path()).err().expect("refused").to_string().contains("is a link"));
    }
}
