//! Small disks that can be full: a tmpfs over one folder of a system. Needs root, as instances do.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// What a system writes in the minutes of a test, several times over.
const DISK_BYTES: u64 = 8 * 1024 * 1024;

/// A disk of its own under `folder`, with what was there before. Lazily unmounted when it is
/// dropped; what a killed test has left is unmounted by [`unmount_below`] at the next start.
pub struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// Nobody may have a file open there at this moment.
    pub fn mount_over(folder: &Path) -> Result<SmallDisk> {
        let aside = tempfile::tempdir().context("a place aside")?;
        copy(folder, aside.path())?;
        let options = format!("size={DISK_BYTES},mode=0755");
        mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .with_context(|| format!("mount a small disk over {} (as root)", folder.display()))?;
        let disk = SmallDisk { folder: folder.to_owned() };
        copy(aside.path(), folder)?;
        Ok(disk)
    }

    /// Takes all the room that is left.
    pub fn fill(&self) -> Result<()> {
        let path = self.ballast();
        let mut file = File::create(&path).context("create the ballast")?;
        // First in large pieces, then to the last byte.
        for piece in [vec![0; 64 * 1024], vec![0; 1]] {
            loop {
                match file.write_all(&piece) {
                    Ok(()) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                    Err(error) => return Err(error).context("fill the disk"),
                }
            }
        }
        Ok(())
    }

    /// Gives the room back.
    pub fn free(&self) -> Result<()> {
        fs::remove_file(self.ballast()).context("remove the ballast")
    }

    /// Refused by the kernel while somebody has a file open for writing there.
    pub fn set_read_only(&self, read_only: bool) -> Result<()> {
        let flag = if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
        mount(None::<&str>, &self.folder, None::<&str>, MsFlags::MS_REMOUNT | flag, None::<&str>)
            .with_context(|| format!("remount {}", self.folder.display()))
    }

    fn ballast(&self) -> PathBuf {
        self.folder.join(".ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Files that are still open keep the disk until they are closed; the folder is free at once.
        let _ = umount2(&self.folder, MntFlags::MNT_DETACH);
    }
}

/// Unmounts what an earlier test has left below `folder`, the newest first.
pub fn unmount_below(folder: &Path) -> Result<()> {
    let Ok(folder) = folder.canonicalize() else { return Ok(()) };
    let mounts = fs::read_to_string("/proc/self/mounts").context("read what is mounted")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let below: Vec<&Path> = points.map(Path::new).filter(|p| p.starts_with(&folder)).collect();
    for point in below.into_iter().rev() {
        umount2(point, MntFlags::MNT_DETACH)
            .with_context(|| format!("unmount {} of an earlier test", point.display()))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status();
    if !copied.context("run cp")?.success() {
        bail!("cannot copy {} to {}", from.display(), to.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_full_and_free_again_and_leaves_its_folder_as_it_was() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = parent.path().join("state");
        fs::create_dir(&folder).expect("created");
        fs::write(folder.join("kept"), "before").expect("written");
        let disk = SmallDisk::mount_over(&folder).expect("root can mount");
        assert_eq!(fs::read_to_string(folder.join("kept")).expect("copied"), "before");
        disk.fill().expect("filled");
        let full = fs::write(folder.join("more"), "x").expect_err("no room");
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        disk.free().expect("freed");
        fs::write(folder.join("more"), "x").expect("room");
        disk.set_read_only(true).expect("remounted");
        let refused = fs::write(folder.join("even more"), "x").expect_err("read-only");
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        disk.set_read_only(false).expect("remounted");
        fs::write(folder.join("even more"), "x").expect("written");
        drop(disk);
        assert_eq!(fs::read_dir(&folder).expect("there").count(), 1, "what was below is back");
    }

    #[test]
    fn what_a_killed_test_left_is_unmounted() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = parent.path().join("state");
        fs::create_dir(&folder).expect("created");
        std::mem::forget(SmallDisk::mount_over(&folder).expect("root can mount"));
        unmount_below(parent.path()).expect("unmounted");
        fs::remove_dir(&folder).expect("nothing is mounted there any more");
    }
}
