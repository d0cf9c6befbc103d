//! What an environment is: the manifest of its files. The digest of the manifest's bytes is the
//! environment's; the pack beside it is the files' contents, one behind the other in this order.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::ids::Digest;

pub const FORMAT: u32 = 1;
/// Twice the largest machine-learning stack that is known.
pub const FILES_MAX: usize = 200_000;
/// What a manifest with so many files takes.
pub const MANIFEST_BYTES_MAX: u64 = 48 * 1024 * 1024;
/// A third of an instance's usual disk.
pub const PACK_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;
/// Linux takes four times that.
pub const PATH_BYTES_MAX: usize = 1024;
pub const DEPTH_MAX: usize = 40;
/// Versions of the frames between transform server and worker that this release speaks.
pub const WORKER_PROTOCOLS: RangeInclusive<u32> = 1..=1;

/// Nobody but the node writes these.
const RESERVED: [&str; 2] = ["pyvenv.cfg", "bin/python"];

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    /// `major.minor`.
    pub python: String,
    /// `x86_64` or `aarch64`.
    pub machine: String,
    /// The version of the package `outstation` in it.
    pub outstation: String,
    pub worker_protocol: u32,
    /// The text from which it was built: every package with its version.
    pub lock: String,
    /// In order of their paths.
    pub files: Vec<File>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Relative to the environment's folder, with `/`.
    pub path: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub executable: bool,
    pub bytes: u64,
    pub digest: Digest,
}

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("it is not a manifest")]
    Json(#[from] serde_json::Error),
    #[error("its format is {0}, and this release reads {FORMAT}")]
    Format(u32),
    #[error("it has {0} files, more than {FILES_MAX}")]
    TooMany(usize),
    #[error("its files have more than {PACK_BYTES_MAX} bytes")]
    TooLarge,
    #[error("its file {path:?} {what}")]
    File { path: String, what: &'static str },
    #[error(
        "its package outstation {outstation} speaks version {found} with the transform server, \
         which speaks {} to {}",
        WORKER_PROTOCOLS.start(),
        WORKER_PROTOCOLS.end()
    )]
    Protocol { outstation: String, found: u32 },
}

impl Manifest {
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain values always serialize")
    }

    /// Everything that is true of an honest manifest, or an error.
    pub fn from_bytes(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        let manifest: Manifest = serde_json::from_slice(bytes)?;
        manifest.check()?;
        Ok(manifest)
    }

    pub fn check(&self) -> Result<(), ManifestError> {
        if self.format != FORMAT {
            return Err(ManifestError::Format(self.format));
        }
        if !WORKER_PROTOCOLS.contains(&self.worker_protocol) {
            let (outstation, found) = (self.outstation.clone(), self.worker_protocol);
            return Err(ManifestError::Protocol { outstation, found });
        }
        if self.files.len() > FILES_MAX {
            return Err(ManifestError::TooMany(self.files.len()));
        }
        self.check_files()
    }

    fn check_files(&self) -> Result<(), ManifestError> {
        let mut bytes = 0u64;
        let mut before = "";
        let mut folders = HashSet::new();
        for file in &self.files {
            let refuse = |what| Err(ManifestError::File { path: shown(&file.path), what });
            if let Err(what) = check_path(&file.path) {
                return refuse(what);
            }
            if !before.is_empty() && file.path.as_str() <= before {
                return refuse("is there twice, or not in order");
            }
            before = &file.path;
            let parents = file.path.match_indices('/').map(|(end, _)| &file.path[..end]);
            folders.extend(parents);
            bytes = bytes.saturating_add(file.bytes);
        }
        if let Some(both) = self.files.iter().find(|file| folders.contains(file.path.as_str())) {
            let what = "is a folder as well";
            return Err(ManifestError::File { path: shown(&both.path), what });
        }
        if bytes > PACK_BYTES_MAX { Err(ManifestError::TooLarge) } else { Ok(()) }
    }

    /// Of the pack.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

fn check_path(path: &str) -> Result<(), &'static str> {
    if path.len() > PATH_BYTES_MAX {
        return Err("has too long a path");
    }
    if path.starts_with('/') {
        return Err("is absolute");
    }
    if path.bytes().any(|byte| byte < b' ' || byte == b'\\') {
        return Err("has a name that is none");
    }
    if path.split('/').count() > DEPTH_MAX {
        return Err("is too deep");
    }
    for part in path.split('/') {
        match part {
            "" => return Err("has a part without a name"),
            "." | ".." => return Err("leads elsewhere"),
            _ if part.len() > 255 => return Err("has too long a name"),
            _ => {}
        }
    }
    if RESERVED.iter().any(|reserved| path.starts_with(reserved)) {
        return Err("is the node's own to make");
    }
    Ok(())
}

fn shown(path: &str) -> String {
    path.chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> File {
        File { path: path.to_owned(), executable: false, bytes: 1, digest: Digest::of(b"x") }
    }

    fn manifest(files: Vec<File>) -> Manifest {
        Manifest {
            format: FORMAT,
            python: "3.11".into(),
            machine: "x86_64".into(),
            outstation: "0.1.0".into(),
            worker_protocol: *WORKER_PROTOCOLS.end(),
            lock: String::new(),
            files,
        }
    }

    fn refused(manifest: &Manifest) -> String {
        let error = Manifest::from_bytes(&manifest.to_bytes()).expect_err("refused");
        error.to_string()
    }

    #[test]
    fn an_honest_manifest_comes_back_as_it_was() {
        let mut executable = file("bin/tool");
        executable.executable = true;
        let whole = manifest(vec![executable, file("lib/a.py"), file("lib/a/b.py"), file("lib/é")]);
        let bytes = whole.to_bytes();
        assert_eq!(Manifest::from_bytes(&bytes).expect("honest"), whole);
        assert_eq!(whole.bytes(), 4);
        assert_eq!(Digest::of(&bytes), Digest::of(&whole.clone().to_bytes()));
    }

    #[test]
    fn files_that_could_land_anywhere_else_are_refused() {
        let deep = "d/".repeat(DEPTH_MAX) + "f";
        let long = "n".repeat(256);
        let longer = "n/".repeat(600);
        for (path, wanted) in [
            ("../evil.py", "leads elsewhere"),
            ("lib/../../evil.py", "leads elsewhere"),
            ("lib/./a.py", "leads elsewhere"),
            ("/etc/passwd", "is absolute"),
            ("", "without a name"),
            ("lib//a.py", "without a name"),
            ("lib/", "without a name"),
            ("a\0b", "has a name that is none"),
            ("a\nb", "has a name that is none"),
            ("a\\b", "has a name that is none"),
            (deep.as_str(), "is too deep"),
            (long.as_str(), "has too long a name"),
            (longer.as_str(), "has too long a path"),
            ("pyvenv.cfg", "is the node's own to make"),
            ("bin/python", "is the node's own to make"),
            ("bin/python3.11", "is the node's own to make"),
        ] {
            let why = refused(&manifest(vec![file(path)]));
            assert!(why.contains(wanted), "{path:?}: {why}");
        }
    }

    #[test]
    fn the_list_itself_is_checked() {
        for (files, wanted) in [
            (vec![file("b"), file("a")], "not in order"),
            (vec![file("a"), file("a")], "is there twice"),
            (vec![file("a"), file("a-b"), file("a/b")], "is a folder as well"),
        ] {
            let why = refused(&manifest(files));
            assert!(why.contains(wanted), "{why}");
        }
        let many = (0..=FILES_MAX).map(|n| file(&format!("{n:07}"))).collect();
        assert!(refused(&manifest(many)).contains("more than 200000"));
        let mut large = manifest(vec![file("a"), file("b")]);
        large.files[0].bytes = u64::MAX;
        assert!(refused(&large).contains("more than 17179869184 bytes"));
    }

    #[test]
    fn versions_that_do_not_fit_are_both_named() {
        let mut newer = manifest(vec![]);
        (newer.worker_protocol, newer.outstation) = (7, "9.1".into());
        let why = refused(&newer);
        assert!(why.contains("outstation 9.1 speaks version 7") && why.contains("1 to 1"), "{why}");
        newer.format = 2;
        assert_eq!(refused(&newer), "its format is 2, and this release reads 1");
        let error = Manifest::from_bytes(b"{\"format\":1,\"more\":2}").expect_err("refused");
        assert_eq!(error.to_string(), "it is not a manifest");
    }
}
