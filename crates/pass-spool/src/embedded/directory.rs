//! The spool's directory: creation, ownership, and the small files beside the segments.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::disk::{Disk, read_up_to};
use super::format::{HeaderFault, HeaderKind, SEGMENT_HEADER_BYTES, header_decode, header_encode};
use super::options::OpenError;
use crate::SpoolId;

/// A directory held by this process; released when dropped.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Creates the directory durably if absent, checks who may enter it, and takes its lock.
    pub(super) fn acquire(path: &Path, disk: &Disk) -> Result<Self, OpenError> {
        let path = std::path::absolute(path).map_err(OpenError::io("resolve", path))?;
        create_durably(&path, disk)?;
        let metadata = fs::metadata(&path).map_err(OpenError::io("inspect", &path))?;
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(OpenError::Exposed { dir: path, mode });
        }
        let lock_path = path.join("lock");
        let lock = match disk.create_new(&lock_path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                disk.open_read(&lock_path)
            }
            other => other,
        }
        .map_err(OpenError::io("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => Err(OpenError::Locked { dir: path }),
            Err(fs::TryLockError::Error(error)) => Err(OpenError::io("lock", &lock_path)(error)),
        }
    }

    /// Reads the id file, or makes it if the directory holds no segments yet.
    pub(super) fn id(&self, disk: &Disk, has_segments: bool) -> Result<SpoolId, OpenError> {
        let file = self.path.join("spool.id");
        if let Some(bytes) = small_file_read(&file, disk)? {
            return match header_decode(HeaderKind::Id, &bytes) {
                Ok((id, 0)) => Ok(id),
                Ok(_) | Err(HeaderFault::Damaged) => Err(OpenError::Identity {
                    file,
                    detail: "spool id is damaged",
                }),
                Err(HeaderFault::Version(version)) => Err(OpenError::Version { file, version }),
            };
        }
        if has_segments {
            return Err(OpenError::Identity {
                file,
                detail: "spool id is missing beside segments",
            });
        }
        let mut bytes = [0; 16];
        File::open("/dev/urandom")
            .and_then(|mut random| random.read_exact(&mut bytes))
            .map_err(OpenError::io("read", "/dev/urandom"))?;
        let id = SpoolId::from_bytes(bytes);
        disk.replace(&file, &header_encode(HeaderKind::Id, id, 0))
            .map_err(OpenError::io("create", &file))?;
        Ok(id)
    }

    /// Reads the settled mark. `None` if there is none, or none that can be trusted: then more is sent again.
    pub(super) fn watermark(&self, disk: &Disk, id: SpoolId) -> Result<Option<u64>, OpenError> {
        let file = watermark_path(&self.path);
        let Some(bytes) = small_file_read(&file, disk)? else {
            return Ok(None);
        };
        match header_decode(HeaderKind::Watermark, &bytes) {
            Ok((owner, settled)) if owner == id => Ok(Some(settled)),
            Ok(_) => Err(OpenError::Identity {
                file,
                detail: "settled mark belongs to another spool",
            }),
            Err(HeaderFault::Version(version)) => Err(OpenError::Version { file, version }),
            Err(HeaderFault::Damaged) => {
                tracing::warn!(file = %file.display(), "settled mark is damaged; records kept may be sent again");
                Ok(None)
            }
        }
    }

    /// Lists the segments' numbers, rising, and removes unfinished files.
    pub(super) fn segments(&self, disk: &Disk) -> Result<Vec<u64>, OpenError> {
        let mut numbers = Vec::new();
        let list = || OpenError::io("list", &self.path);
        for entry in fs::read_dir(&self.path).map_err(list())? {
            let name = entry.map_err(list())?.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.ends_with(".tmp") {
                let unfinished = self.path.join(name);
                disk.unlink(&unfinished)
                    .map_err(OpenError::io("remove", &unfinished))?;
            } else if let Some(number) = segment_number(name) {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}

pub(super) fn watermark_path(dir: &Path) -> PathBuf {
    dir.join("settled")
}

pub(super) fn watermark_write(
    dir: &Path,
    disk: &Disk,
    id: SpoolId,
    settled: u64,
) -> io::Result<()> {
    disk.replace(
        &watermark_path(dir),
        &header_encode(HeaderKind::Watermark, id, settled),
    )
}

pub(super) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("segment-{number:012}.log"))
}

fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("segment-")?.strip_suffix(".log")?;
    (digits.len() >= 12 && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| digits.parse().ok())?
}

fn small_file_read(path: &Path, disk: &Disk) -> Result<Option<Vec<u8>>, OpenError> {
    let file = match disk.open_read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(OpenError::io("open", path))?,
    };
    let mut bytes = vec![0; SEGMENT_HEADER_BYTES + 1];
    let filled = read_up_to(&file, &mut bytes, 0).map_err(OpenError::io("read", path))?;
    bytes.truncate(filled);
    Ok(Some(bytes))
}

/// Creates a directory with its ancestors, each entry synced before the next is made.
fn create_durably(path: &Path, disk: &Disk) -> Result<(), OpenError> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    create_durably(parent, disk)?;
    match disk.dir_create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other.map_err(OpenError::io("create", path))?,
    }
    disk.sync_dir(parent).map_err(OpenError::io("sync", parent))
}
