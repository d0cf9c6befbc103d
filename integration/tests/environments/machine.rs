//! One environment in an account store, and the command that fetches it.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Result;
use outstation_integration::{binaries, workspace};
use outstation_protocol::Digest;
use outstation_protocol::environment::{self, FORMAT, Manifest, WORKER_PROTOCOLS};
use rand::Rng as _;
use rand::rngs::StdRng;
use tempfile::TempDir;

/// An account store with one environment, and a machine that fetches it.
pub struct Machine {
    folder: TempDir,
    pub manifest: Manifest,
    digest: Digest,
}

impl Machine {
    /// Some ten files a megabyte, and of each ten megabytes nine in one file, as machine learning's
    /// packages have it.
    pub fn new(megabytes: usize, random: &mut StdRng) -> Result<Machine> {
        // On a disk, not in a file system that is memory.
        let folder = tempfile::tempdir_in(workspace().join("target"))?;
        let store = folder.path().join("store/artifacts/environments");
        fs::create_dir_all(&store)?;
        let mut pack = BufWriter::new(File::create(store.join("pack"))?);
        let mut files = Vec::new();
        for number in 0..megabytes * 10 {
            let bytes = if number % 100 == 0 { 9 << 20 } else { random.random_range(0..20_000) };
            let mut contents = vec![0; bytes];
            random.fill(&mut contents[..]);
            files.push(environment::File {
                path: format!("lib/package{:04}/file{number:04}.py", number / 50),
                executable: false,
                bytes: bytes as u64,
                digest: Digest::of(&contents),
            });
            pack.write_all(&contents)?;
        }
        let manifest = Manifest {
            format: FORMAT,
            python: "3.11".into(),
            machine: std::env::consts::ARCH.into(),
            outstation: "0.1.0".into(),
            worker_protocol: *WORKER_PROTOCOLS.end(),
            lock: String::new(),
            files,
        };
        let bytes = manifest.to_bytes();
        let digest = Digest::of(&bytes);
        fs::write(store.join(format!("{}.json", digest.hex())), bytes)?;
        pack.flush()?;
        fs::rename(store.join("pack"), store.join(format!("{}.pack", digest.hex())))?;
        let python = folder.path().join("python");
        fs::write(&python, "#!/bin/sh\necho 3.11\necho /bin/sh\n")?;
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755))?;
        Ok(Machine { folder, manifest, digest })
    }

    pub fn pack(&self) -> PathBuf {
        let name = format!("{}.pack", self.digest.hex());
        self.folder.path().join("store/artifacts/environments").join(name)
    }

    pub fn environments(&self) -> PathBuf {
        self.folder.path().join("environments")
    }

    pub fn fetch(&self) -> Result<Child> {
        Ok(Command::new(binaries().join("outstation-agent"))
            .args(["fetch-environment", &self.digest.to_string()])
            .arg("--store")
            .arg(self.folder.path().join("store"))
            .arg("--environments")
            .arg(self.environments())
            .arg("--python")
            .arg(self.folder.path().join("python"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?)
    }

    pub fn marker(&self) -> PathBuf {
        self.environments().join(format!(".{}.synced", self.digest.hex()))
    }

    /// What a server would be started from.
    pub fn is_whole(&self) -> Result<bool> {
        let installed = self.environments().join(self.digest.hex());
        for file in &self.manifest.files {
            if Digest::of(&fs::read(installed.join(&file.path))?) != file.digest {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A power cut: of what nobody has synced, files are empty, short, or full of zeros.
    pub fn tear(&self, random: &mut StdRng) -> Result<()> {
        if self.marker().exists() {
            return Ok(());
        }
        let name = self.digest.hex();
        for folder in
            [self.environments().join(&name), self.environments().join(format!(".{name}.part"))]
        {
            for file in &self.manifest.files {
                let path = folder.join(&file.path);
                if path.is_file() && random.random_ratio(1, 10) {
                    tear_file(&path, random)?;
                }
            }
        }
        Ok(())
    }
}

fn tear_file(path: &Path, random: &mut StdRng) -> Result<()> {
    let file = File::options().write(true).open(path)?;
    let bytes = file.metadata()?.len();
    match random.random_range(0..3) {
        0 => file.set_len(0)?,
        1 => file.set_len(bytes / 2)?,
        _ => {
            file.set_len(0)?;
            file.set_len(bytes)?;
        }
    }
    Ok(())
}
