//! One environment's files, cut out of its pack by a few threads, each hashed while it is written.
//! What an attempt before has left is kept where it is right.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use outstation_protocol::Digest;
use outstation_protocol::environment::{self, Manifest};
use sha2::{Digest as _, Sha256};

use super::environments::{EnvironmentError, failed, unread};
use crate::store::AccountStore;

/// Read at once: of one large file, or many small ones.
const READ_BYTES: u64 = 4 * 1024 * 1024;
const HASH_BYTES: usize = 256 * 1024;
/// A read may be a request to the account store: several are under way.
const THREADS_MAX: usize = 4;

/// How much of an environment had to be fetched.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub bytes: u64,
    pub bytes_fetched: u64,
}

/// The files' contents, in the account store.
pub struct Pack<'a> {
    pub store: &'a AccountStore,
    pub key: String,
}

impl Pack<'_> {
    pub fn size(&self) -> Result<Option<u64>, EnvironmentError> {
        self.store.size(&self.key).map_err(unread(self.store, &self.key))
    }

    fn read(&self, offset: u64, bytes: u64) -> Result<Vec<u8>, EnvironmentError> {
        let read = self.store.read_at(&self.key, offset, bytes);
        let read = read.map_err(unread(self.store, &self.key))?.unwrap_or_default();
        if read.len() as u64 != bytes {
            let short = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(failed("read", Path::new(&self.store.name(&self.key)))(short));
        }
        Ok(read)
    }
}

/// Files that lie one behind the other in the pack, and where.
struct Run<'a> {
    files: &'a [environment::File],
    offset: u64,
}

/// Puts every file of `manifest` below `part`, or says which is not what it should be.
pub fn files(
    digest: &Digest,
    manifest: &Manifest,
    pack: &Pack<'_>,
    part: &Path,
) -> Result<Progress, EnvironmentError> {
    let resumes = part.exists();
    fs::create_dir_all(part).map_err(failed("create", part))?;
    for folder in folders(manifest) {
        let path = part.join(folder);
        fs::create_dir_all(&path).map_err(failed("create", &path))?;
    }
    let fetched = AtomicU64::new(0);
    each_run(&runs(&manifest.files), |run, buffer| {
        if resumes && run.is_there(part, buffer) {
            return Ok(());
        }
        write_run(digest, run, pack, part)?;
        fetched.fetch_add(run.bytes(), Ordering::Relaxed);
        Ok(())
    })?;
    Ok(Progress { bytes: manifest.bytes(), bytes_fetched: fetched.into_inner() })
}

/// Everything that [`files`] and [`interpreter`] would make is in `folder`, as they would make it.
pub fn is_whole(manifest: &Manifest, folder: &Path, base: &Path) -> bool {
    let config = fs::read_to_string(folder.join("pyvenv.cfg"));
    let link = fs::read_link(folder.join("bin/python"));
    config.is_ok_and(|text| text == configuration(&manifest.python, base))
        && link.is_ok_and(|link| link == base)
        && each_run(&runs(&manifest.files), |run, buffer| {
            if run.is_there(folder, buffer) { Ok(()) } else { Err(()) }
        })
        .is_ok()
}

/// With a few threads; after a failure nobody begins another.
fn each_run<E: Send>(
    runs: &[Run<'_>],
    act: impl Fn(&Run<'_>, &mut [u8]) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<(), E> {
        let mut buffer = vec![0; HASH_BYTES];
        while let Some(run) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            act(run, &mut buffer).inspect_err(|_| next.store(runs.len(), Ordering::Relaxed))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS_MAX.min(runs.len())).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("threads do not panic"))
    })
}

/// Makes a virtual environment of it.
pub fn interpreter(part: &Path, version: &str, base: &Path) -> Result<(), EnvironmentError> {
    let config = part.join("pyvenv.cfg");
    fs::write(&config, configuration(version, base)).map_err(failed("write", &config))?;
    let bin = part.join("bin");
    fs::create_dir_all(&bin).map_err(failed("create", &bin))?;
    let link = bin.join("python");
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("replace", &link)(error));
        }
        _ => {}
    }
    symlink(base, &link).map_err(failed("make", &link))
}

/// <https://docs.python.org/3/library/venv.html>
fn configuration(version: &str, base: &Path) -> String {
    let home = base.parent().unwrap_or(Path::new("/")).display();
    format!("home = {home}\ninclude-system-site-packages = false\nversion = {version}\n")
}

fn folders(manifest: &Manifest) -> BTreeSet<&str> {
    let parent = |file: &environment::File| file.path.rfind('/');
    manifest.files.iter().filter_map(|file| parent(file).map(|end| &file.path[..end])).collect()
}

/// Small files together, as far as one read takes them; large ones alone.
fn runs(files: &[environment::File]) -> Vec<Run<'_>> {
    let mut runs = Vec::new();
    let (mut first, mut offset, mut bytes) = (0, 0, 0);
    for (index, file) in files.iter().enumerate() {
        if index > first && bytes + file.bytes > READ_BYTES {
            runs.push(Run { files: &files[first..index], offset });
            (first, offset, bytes) = (index, offset + bytes, 0);
        }
        bytes += file.bytes;
    }
    if first < files.len() {
        runs.push(Run { files: &files[first..], offset });
    }
    runs
}

impl Run<'_> {
    fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    fn is_there(&self, below: &Path, buffer: &mut [u8]) -> bool {
        self.files.iter().all(|file| is_there(&below.join(&file.path), file, buffer))
    }
}

fn write_run(
    digest: &Digest,
    run: &Run<'_>,
    pack: &Pack<'_>,
    part: &Path,
) -> Result<(), EnvironmentError> {
    if let [file] = run.files {
        return write_large(digest, file, run.offset, pack, part);
    }
    let whole = pack.read(run.offset, run.bytes())?;
    let mut rest = &whole[..];
    for file in run.files {
        let contents;
        (contents, rest) = rest.split_at(file.bytes as usize);
        check(digest, file, Digest::of(contents))?;
        let path = part.join(&file.path);
        create(&path, file)
            .and_then(|mut there| there.write_all(contents))
            .map_err(failed("write", &path))?;
    }
    Ok(())
}

fn write_large(
    digest: &Digest,
    file: &environment::File,
    mut offset: u64,
    pack: &Pack<'_>,
    part: &Path,
) -> Result<(), EnvironmentError> {
    let path = part.join(&file.path);
    let mut there = create(&path, file).map_err(failed("write", &path))?;
    let (end, mut hasher) = (offset + file.bytes, Sha256::new());
    while offset < end {
        let some = pack.read(offset, READ_BYTES.min(end - offset))?;
        hasher.update(&some);
        there.write_all(&some).map_err(failed("write", &path))?;
        offset += some.len() as u64;
    }
    check(digest, file, Digest::from_bytes(hasher.finalize().into()))
}

fn check(digest: &Digest, file: &environment::File, found: Digest) -> Result<(), EnvironmentError> {
    if found == file.digest {
        return Ok(());
    }
    let (path, wanted) = (file.path.clone(), file.digest);
    Err(EnvironmentError::File { digest: *digest, path, wanted, found })
}

/// In the place of whatever is there, with a mode of its own.
fn create(path: &Path, file: &environment::File) -> io::Result<File> {
    let mode = if file.executable { 0o755 } else { 0o644 };
    let create = || OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    match create() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            create()
        }
        created => created,
    }
}

/// Left by an attempt before, and whole.
fn is_there(path: &Path, file: &environment::File, buffer: &mut [u8]) -> bool {
    let Ok(mut there) = File::open(path) else { return false };
    if there.metadata().map_or(true, |of| of.len() != file.bytes) {
        return false;
    }
    let mut hasher = Sha256::new();
    loop {
        match there.read(buffer) {
            Ok(0) => return Digest::from_bytes(hasher.finalize().into()) == file.digest,
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}
