//! Every call that changes storage, in one place, so that a test can make each of them fail.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};

/// A kind of storage call, named to the fault hook before it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskOp {
    /// Creating a file or directory.
    Create,
    /// Reserving room for a new segment.
    Reserve,
    /// Writing into a file.
    Write,
    /// Syncing a file.
    Sync,
    /// Syncing a directory.
    SyncDir,
    /// Renaming a file.
    Rename,
    /// Removing a file.
    Unlink,
    /// Cutting a file.
    Truncate,
    /// Opening or reading a file.
    Read,
}

/// Called before each storage call; what it returns as an error is taken for the call's own.
pub type FaultHook = dyn Fn(DiskOp, &Path) -> io::Result<()> + Send + Sync;

#[derive(Clone, Default)]
pub(crate) struct Disk {
    hook: Option<Arc<FaultHook>>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("hooked", &self.hook.is_some())
            .finish()
    }
}

impl Disk {
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn hooked(hook: Arc<FaultHook>) -> Self {
        Self { hook: Some(hook) }
    }

    fn before(&self, op: DiskOp, path: &Path) -> io::Result<()> {
        self.hook.as_ref().map_or(Ok(()), |hook| hook(op, path))
    }

    /// Creates a file that must not exist, for reading and writing, mode 0600.
    pub(crate) fn create_new(&self, path: &Path) -> io::Result<File> {
        self.before(DiskOp::Create, path)?;
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
    }

    pub(crate) fn dir_create(&self, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        self.before(DiskOp::Create, path)?;
        fs::DirBuilder::new().mode(0o700).create(path)
    }

    pub(crate) fn open_read(&self, path: &Path) -> io::Result<File> {
        self.before(DiskOp::Read, path)?;
        File::open(path)
    }

    /// Drops clean cached pages, so that what is read next is what the device holds.
    pub(crate) fn cache_drop(&self, file: &File) -> io::Result<()> {
        Ok(fadvise(file, 0, None, Advice::DontNeed)?)
    }

    /// Reserves room, where the file system can.
    pub(crate) fn reserve(&self, file: &File, path: &Path, bytes: u64) -> io::Result<()> {
        self.before(DiskOp::Reserve, path)?;
        match fallocate(file, FallocateFlags::empty(), 0, bytes) {
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            other => Ok(other?),
        }
    }

    pub(crate) fn write_at(
        &self,
        file: &File,
        path: &Path,
        bytes: &[u8],
        offset: u64,
    ) -> io::Result<()> {
        self.before(DiskOp::Write, path)?;
        file.write_all_at(bytes, offset)
    }

    /// fdatasync: content, and metadata needed to read it.
    pub(crate) fn sync_data(&self, file: &File, path: &Path) -> io::Result<()> {
        self.before(DiskOp::Sync, path)?;
        file.sync_data()
    }

    pub(crate) fn sync_all(&self, file: &File, path: &Path) -> io::Result<()> {
        self.before(DiskOp::Sync, path)?;
        file.sync_all()
    }

    pub(crate) fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.before(DiskOp::SyncDir, path)?;
        File::open(path)?.sync_all()
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.before(DiskOp::Rename, to)?;
        fs::rename(from, to)
    }

    /// Removes a file; one that is already gone is fine.
    pub(crate) fn unlink(&self, path: &Path) -> io::Result<()> {
        self.before(DiskOp::Unlink, path)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    pub(crate) fn truncate(&self, path: &Path, bytes: u64) -> io::Result<()> {
        self.before(DiskOp::Truncate, path)?;
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(bytes)?;
        self.sync_all(&file, path)
    }

    /// Writes a small file so that after a crash it has either its old or its new content.
    pub(crate) fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let unfinished = path.with_added_extension("tmp");
        self.unlink(&unfinished)?;
        let file = self.create_new(&unfinished)?;
        self.write_at(&file, &unfinished, content, 0)?;
        self.sync_all(&file, &unfinished)?;
        self.rename(&unfinished, path)?;
        self.sync_dir(path.parent().unwrap_or(Path::new("/")))
    }
}

/// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end of the file.
pub(crate) fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Says whether an error while making room is a lack of room (or of descriptors), which passes, or a fault.
pub(crate) fn is_lack_of_room(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let lacks = [
        Errno::NOSPC,
        Errno::DQUOT,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOMEM,
    ];
    Errno::from_io_error(error).is_some_and(|errno| lacks.contains(&errno))
}
