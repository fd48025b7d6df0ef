//! The configured sources, found by name for callbacks and by uid for what comes back from pass-state.

use std::collections::HashMap;
use std::path::Path;

use pass_sources::{SecretRef, Source, SourceConfig};
use service_kit::config::{Fault, Faults, Origin};

use crate::config::{Ack, AckMode};

/// Largest secret that is read, in bytes.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// One source with what the gateway adds to it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) source: Source,
    pub(crate) ack: AckMode,
    /// The methods of the `Allow` header.
    pub(crate) allow: String,
}

/// All sources. A source's index is its place in the books.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
    by_uid: HashMap<String, usize>,
}

impl Sources {
    /// Builds every source; reports every fault of all of them, as coming from `origin`.
    pub(crate) fn build(
        configs: &[SourceConfig],
        ack: &Ack,
        env: &[(String, String)],
        origin: &Origin,
    ) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let mut sources = Self::default();
        for (index, config) in configs.iter().enumerate() {
            match Source::build(config, &mut |secret| resolve(secret, env)) {
                Ok(source) => sources.add(source, ack),
                Err(found) => {
                    for fault in found {
                        faults.add(Fault {
                            path: format!("sources[{index}].{}", fault.path),
                            origin: origin.clone(),
                            problem: fault.message,
                            allowed: None,
                            fix: None,
                        });
                    }
                }
            }
        }
        if faults.is_empty() {
            Ok(sources)
        } else {
            Err(faults)
        }
    }

    fn add(&mut self, source: Source, ack: &Ack) {
        let index = self.entries.len();
        self.by_name.insert(source.name().to_owned(), index);
        self.by_uid.insert(source.uid().to_string(), index);
        let allow = source
            .methods()
            .iter()
            .map(|method| method.name())
            .collect::<Vec<_>>()
            .join(", ");
        self.entries.push(Entry {
            ack: ack.mode_of(source.name()),
            allow,
            source,
        });
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<(usize, &Entry)> {
        self.by_name
            .get(name)
            .map(|&index| (index, &self.entries[index]))
    }

    pub(crate) fn by_uid(&self, uid: &str) -> Option<(usize, &Entry)> {
        self.by_uid
            .get(uid)
            .map(|&index| (index, &self.entries[index]))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }
}

/// Reads a secret; the error names no more of it than its place.
pub(crate) fn resolve(secret: &SecretRef, env: &[(String, String)]) -> Result<Vec<u8>, String> {
    if let Some(value) = &secret.value {
        return Ok(value.clone().into_bytes());
    }
    if let Some(path) = &secret.file {
        return read_file(path);
    }
    if let Some(name) = &secret.env {
        return match env.iter().find(|(known, _)| known == name) {
            Some((_, value)) => Ok(value.clone().into_bytes()),
            None => Err(format!(
                "environment variable {name} is not set; set it to the secret"
            )),
        };
    }
    Err("names no place; give one of value, file, env".to_owned())
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let refuse = |error: std::io::Error| {
        format!(
            "{} can't be read: {error}; make it readable to the service",
            path.display()
        )
    };
    let bytes_found = std::fs::metadata(path).map_err(refuse)?.len();
    if bytes_found > SECRET_BYTES_MAX {
        return Err(format!(
            "{} has {bytes_found} bytes; a secret has at most {SECRET_BYTES_MAX}",
            path.display()
        ));
    }
    let mut bytes = std::fs::read(path).map_err(refuse)?;
    // The line break that editors and `echo` leave at the end.
    if bytes.ends_with(b"\n") {
        bytes.pop();
        if bytes.ends_with(b"\r") {
            bytes.pop();
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_come_from_value_file_or_environment() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        std::fs::write(&file, "from-file\r\n").unwrap();
        let env = [("KEY".to_owned(), "from-env".to_owned())];
        let at = |value: Option<&str>, file: Option<&Path>, name: Option<&str>| {
            let secret = SecretRef {
                value: value.map(Into::into),
                file: file.map(Into::into),
                env: name.map(Into::into),
            };
            resolve(&secret, &env)
        };
        assert_eq!(at(Some("plain"), None, None).unwrap(), b"plain");
        assert_eq!(at(None, Some(&file), None).unwrap(), b"from-file");
        assert_eq!(at(None, None, Some("KEY")).unwrap(), b"from-env");
        assert!(
            at(None, None, Some("OTHER"))
                .unwrap_err()
                .contains("OTHER is not set")
        );
        assert!(
            at(None, Some(&dir.path().join("absent")), None)
                .unwrap_err()
                .contains("absent")
        );
        assert!(at(None, None, None).is_err());
    }
}
