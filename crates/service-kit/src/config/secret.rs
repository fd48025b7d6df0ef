//! Secrets: where they come from, and never printing them.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::de::{self, MapAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toml::{Table, Value};

/// Largest secret that is read.
const SECRET_BYTES_MAX: usize = 64 << 10;
const REDACTED: &str = "[REDACTED]";
/// Where [`resolve_env`] puts what it found; no user writes such a key.
const RESOLVED: &str = "$resolved";

/// Bytes that are never printed: `Debug`, `Display` and `Serialize` all show
/// `[REDACTED]`.
///
/// Comparison is left out on purpose: compare digests in constant time.
#[derive(Clone)]
pub struct Secret {
    bytes: Box<[u8]>,
}

impl Secret {
    /// Wraps bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            bytes: bytes.into().into_boxed_slice(),
        }
    }

    /// Returns the bytes; the name makes uses easy to find in review.
    pub fn expose(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

/// A secret in a configuration: `{ value = "…" }`, `{ file = "path" }` or
/// `{ env = "NAME" }`, resolved while loading.
///
/// One trailing line break of a file is cut off. Relative paths start at the
/// working directory. Empty secrets and those over 64 KiB are refused. `env`
/// works through [`super::load`] only, which owns the environment.
#[derive(Clone, Debug)]
pub struct SecretSource {
    from: From,
    secret: Secret,
}

#[derive(Clone, Debug)]
enum From {
    Value,
    File(PathBuf),
    Env(String),
}

impl SecretSource {
    /// Makes a source of a literal value, for tests and generated configurations.
    pub fn value(bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            from: From::Value,
            secret: Secret::new(bytes),
        }
    }

    /// Returns the resolved secret.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Returns the resolved bytes.
    pub fn expose(&self) -> &[u8] {
        self.secret.expose()
    }
}

impl Serialize for SecretSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        match &self.from {
            From::Value => map.serialize_entry("value", REDACTED)?,
            From::File(path) => map.serialize_entry("file", path)?,
            From::Env(name) => map.serialize_entry("env", name)?,
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for SecretSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(SourceVisitor)
    }
}

struct SourceVisitor;

impl<'de> Visitor<'de> for SourceVisitor {
    type Value = SecretSource;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("one of { value = \"…\" }, { file = \"path\" }, { env = \"NAME\" }")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<SecretSource, M::Error> {
        let (mut value, mut file, mut env, mut resolved) = (None, None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let slot = match key.as_str() {
                "value" => &mut value,
                "file" => &mut file,
                "env" => &mut env,
                RESOLVED => &mut resolved,
                _ => {
                    return Err(de::Error::custom(format_args!(
                        "unknown key `{key}` of a secret, expected `value`, `file` or `env`"
                    )));
                }
            };
            *slot = Some(map.next_value::<String>()?);
        }
        let (from, bytes) = match (value, file, env) {
            (Some(value), None, None) => (From::Value, value.into_bytes()),
            (None, Some(path), None) => {
                let path = PathBuf::from(path);
                let bytes = read_file(&path).map_err(de::Error::custom)?;
                (From::File(path), bytes)
            }
            (None, None, Some(name)) => match resolved {
                Some(value) => (From::Env(name), value.into_bytes()),
                None => {
                    return Err(de::Error::custom(format_args!(
                        "environment variable {name} of the secret is not set, expected it to hold the secret"
                    )));
                }
            },
            _ => {
                return Err(de::Error::custom(
                    "a secret with none or several sources, expected exactly one of `value`, `file`, `env`",
                ));
            }
        };
        if bytes.is_empty() || bytes.len() > SECRET_BYTES_MAX {
            return Err(de::Error::custom(format_args!(
                "secret of {} bytes, expected 1 to {SECRET_BYTES_MAX} bytes",
                bytes.len()
            )));
        }
        Ok(SecretSource {
            from,
            secret: Secret::new(bytes),
        })
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| {
            file.take(SECRET_BYTES_MAX as u64 + 3)
                .read_to_end(&mut bytes)
        })
        .map_err(|error| {
            format!(
                "secret file {} can't be read: {error}, expected a readable file",
                path.display()
            )
        })?;
    if bytes.ends_with(b"\n") {
        bytes.pop();
        if bytes.ends_with(b"\r") {
            bytes.pop();
        }
    }
    Ok(bytes)
}

/// Puts the variable's value beside `env` in every table that has only that
/// key, so that deserialization needs no access to the environment.
pub(super) fn resolve_env(tree: &mut Table, variables: &[(String, String)]) {
    if tree.len() == 1
        && let Some(Value::String(name)) = tree.get("env")
        && let Some((_, value)) = variables.iter().find(|(known, _)| known == name)
    {
        tree.insert(RESOLVED.to_owned(), Value::String(value.clone()));
        return;
    }
    for (_, value) in tree.iter_mut() {
        resolve_env_in(value, variables);
    }
}

fn resolve_env_in(value: &mut Value, variables: &[(String, String)]) {
    match value {
        Value::Table(table) => resolve_env(table, variables),
        Value::Array(array) => {
            for value in array {
                resolve_env_in(value, variables);
            }
        }
        _ => {}
    }
}
