//! What a set of files holds, in 32 bytes.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// Most bytes of one file that are looked at; configuration is far smaller.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// The digest of files' names and contents. One that can't be read counts with
/// the kind of the error, so that its coming and going is a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Digest([u8; 32]);

impl Digest {
    pub(super) fn of(files: &[PathBuf]) -> Self {
        let mut sum = Sha256::new();
        for file in files {
            let name = file.as_os_str().as_encoded_bytes();
            sum.update((name.len() as u64).to_be_bytes());
            sum.update(name);
            match read(file) {
                Ok(bytes) => {
                    sum.update([1]);
                    sum.update((bytes.len() as u64).to_be_bytes());
                    sum.update(bytes);
                }
                Err(error) => sum.update(format!("\0{:?}\0", error.kind())),
            }
        }
        Self(sum.finalize().into())
    }
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?
        .take(FILE_BYTES_MAX)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}
