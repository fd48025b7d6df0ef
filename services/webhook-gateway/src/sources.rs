//! The configured sources, found by name for callbacks and by uid for what comes back from pass-state.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pass_sources::{SecretRef, Source, SourceConfig};
use service_kit::config::{Fault, Faults, Origin};

use crate::books::Books;
use crate::config::{Ack, AckMode, Http};
use crate::limits::{Bucket, Rate};

/// Largest secret that is read, in bytes.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// One source with what the gateway adds to it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) source: Source,
    pub(crate) ack: AckMode,
    /// The methods of the `Allow` header.
    pub(crate) allow: String,
    /// How many authentic deliveries are taken.
    pub(crate) rate: Arc<Bucket>,
    /// How many failing credentials are answered at once; absent: all.
    pub(crate) failures: Option<Arc<Bucket>>,
    /// Since when it is configured without a break.
    since: Instant,
    /// Its place in the books.
    page: usize,
}

impl Entry {
    /// Its place in the books.
    pub(crate) fn page(&self) -> usize {
        self.page
    }

    /// How long it has been configured without a break.
    pub(crate) fn age(&self) -> Duration {
        self.since.elapsed()
    }
}

/// All sources, of one configuration.
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
        http: &Http,
        env: &[(String, String)],
        origin: &Origin,
    ) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let mut sources = Self::default();
        for (index, config) in configs.iter().enumerate() {
            match Source::build(config, &mut |secret| resolve(secret, env)) {
                Ok(source) => sources.add(source, config, ack, http),
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

    fn add(&mut self, source: Source, config: &SourceConfig, ack: &Ack, http: &Http) {
        let index = self.entries.len();
        self.by_name.insert(source.name().to_owned(), index);
        self.by_uid.insert(source.uid().to_string(), index);
        let allow = source
            .methods()
            .iter()
            .map(|method| method.name())
            .collect::<Vec<_>>()
            .join(", ");
        let rate = Rate::new(
            config.rate_per_sec.unwrap_or(http.rates.source_per_sec),
            config.rate_burst.unwrap_or(http.rates.source_burst),
        );
        let failures = Rate::new(
            http.failed_auth.source_per_sec,
            http.failed_auth.source_burst,
        );
        self.entries.push(Entry {
            rate: Arc::new(Bucket::new(rate.unwrap_or(Rate::LEAST))),
            failures: failures.map(|rate| Arc::new(Bucket::new(rate))),
            since: Instant::now(),
            page: 0,
            ack: ack.mode_of(source.name()),
            allow,
            source,
        });
    }

    /// Takes over from the sources before these since when they are there, and what they have used up where their rates
    /// are the same.
    pub(crate) fn go_on_from(&mut self, before: &Self) {
        for entry in &mut self.entries {
            let Some((_, known)) = before.by_name(entry.source.name()) else {
                continue;
            };
            entry.since = known.since;
            if known.rate.rate() == entry.rate.rate() {
                entry.rate = Arc::clone(&known.rate);
            }
            if let (Some(then), Some(now)) = (&known.failures, &mut entry.failures)
                && then.rate() == now.rate()
            {
                *now = Arc::clone(then);
            }
        }
    }

    /// Gives each source its page.
    ///
    /// # Errors
    /// The first source for which there is none left.
    pub(crate) fn enroll(&mut self, books: &Books) -> Result<(), String> {
        for entry in &mut self.entries {
            let name = entry.source.name();
            entry.page = books.enroll(name).ok_or_else(|| name.to_owned())?;
        }
        Ok(())
    }

    /// The source with that name, and its page in the books.
    pub(crate) fn by_name(&self, name: &str) -> Option<(usize, &Entry)> {
        self.by_name
            .get(name)
            .map(|&index| &self.entries[index])
            .map(|entry| (entry.page, entry))
    }

    /// The source with that uid, and its page in the books.
    pub(crate) fn by_uid(&self, uid: &str) -> Option<(usize, &Entry)> {
        self.by_uid
            .get(uid)
            .map(|&index| &self.entries[index])
            .map(|entry| (entry.page, entry))
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
