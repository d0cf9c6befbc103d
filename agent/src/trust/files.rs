//! Files that must survive a crash whole: written beside their place, synced, and only then put
//! there under their name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Puts `bytes` at `path`, over whatever is there.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = write_beside(path, bytes, mode)?;
    fs::rename(&temporary, path).inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    sync_parent(path)
}

/// The same for what is worth nothing after a power cut, and has one writer: a reader never sees
/// half of it, and nothing waits for the disk.
pub fn replace_quickly(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.part"));
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    let renamed = file.write_all(bytes).and_then(|()| fs::rename(&temporary, path));
    renamed.inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// Removes what writers left in `folder` that were killed before they put it in its place. Nobody
/// may be writing there.
pub fn remove_leftovers(folder: &Path) -> io::Result<()> {
    let is_hex = |text: &str| text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_str().and_then(|name| name.strip_prefix('.'));
        if name.and_then(|name| name.rsplit_once('.')).is_some_and(|(_, end)| is_hex(end)) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Puts `bytes` at `path` if nothing is there: [`io::ErrorKind::AlreadyExists`] otherwise. Of two
/// that race exactly one wins, and a reader never sees half of it.
pub fn create_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = write_beside(path, bytes, mode)?;
    // `rename` would replace; a hard link refuses, as O_EXCL does.
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary)?;
    linked?;
    sync_parent(path)
}

/// Of what is in a folder, in order; what writers left that were killed, and locks, do not count. None if the folder is not there.
pub fn names(folder: &Path) -> io::Result<Option<Vec<String>>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry?.file_name().into_string()
            && !name.starts_with('.')
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(Some(names))
}

/// Whether a file could be put into this folder now.
pub fn check_writable(folder: &Path) -> io::Result<()> {
    fs::remove_file(write_beside(&folder.join("writable"), b"?", 0o600)?)
}

fn write_beside(path: &Path, bytes: &[u8], mode: u32) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{:016x}", rand::random::<u64>()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    Ok(temporary)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_created_once_and_replaced_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("root.key");
        create_new(&path, b"first", 0o600).expect("nothing is there");
        let again = create_new(&path, b"second", 0o600).expect_err("it is there");
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).expect("readable"), b"first");
        let mode = fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        replace(&path, b"third", 0o600).expect("replaces");
        assert_eq!(fs::read(&path).expect("readable"), b"third");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "no leftovers");
    }

    #[test]
    fn what_a_killed_writer_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("nodes.json");
        write_beside(&path, b"half", 0o600).expect("written, and never put in its place");
        for name in ["nodes.json", ".lock", ".keep.txt", ".a.0123456789abcdeg"] {
            fs::write(folder.path().join(name), b"kept").expect("writable");
        }
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 5);
        remove_leftovers(folder.path()).expect("removable");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 4);
        replace_quickly(&path, b"new", 0o600).expect("replaces");
        assert_eq!(fs::read(&path).expect("readable"), b"new");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 4, "no leftovers");
    }
}
