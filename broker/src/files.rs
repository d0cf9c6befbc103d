//! Files that must be whole or absent: written beside, synced, then renamed into place.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Only the broker's user may read it.
pub const PRIVATE: u32 = 0o600;
/// What everybody may know, such as a root certificate.
pub const PUBLIC: u32 = 0o644;

/// Makes the directory if it is absent, and closes it to everybody else in any case.
pub fn ensure_private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
}

/// After a crash at any point the file is either as before or whole.
pub fn write_durably(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = Path::new(&beside);
    // A rest of an interrupted write; its mode must not be inherited.
    match fs::remove_file(beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(beside, path)?;
    File::open(dir)?.sync_all()
}

/// The file's text, or `None` if there is no such file.
pub fn read_if_present(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_file_is_private_also_after_an_interrupted_write() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("root.key");
        fs::write(dir.path().join("root.key.new"), "rest").expect("write the rest");
        write_durably(&path, b"secret", PRIVATE).expect("write");
        let mode = fs::metadata(&path).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, PRIVATE);
        assert_eq!(read_if_present(&path).expect("read"), Some("secret".into()));
        assert_eq!(read_if_present(&dir.path().join("none")).expect("read"), None);
    }
}
