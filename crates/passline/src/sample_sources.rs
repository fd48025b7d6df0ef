//! The sample sources of `up` and `demo`: one per scheme, with generated keys
//! kept in `DIR/sources.toml`.
//!
//! The file is a piece of configuration, `[[gateway.sources]]`, so the gateway
//! reads it like any other and an operator can go on from it.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pass_sources::{SourceConfig, samples};
use serde::Deserialize;

use crate::Failure;

/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where a data directory keeps its sample sources.
pub(crate) fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("sources.toml")
}

/// Returns the path of the sample sources, after making them if there are none.
///
/// The file is complete or absent, never half, and for its owner only.
pub(crate) fn ensure(data_dir: &Path) -> io::Result<PathBuf> {
    let path = path(data_dir);
    if path.try_exists()? {
        return Ok(path);
    }
    let fresh = data_dir.join("sources.toml.new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(text(&Keys::generate()?).as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, &path)?;
    File::open(data_dir)?.sync_all()?;
    Ok(path)
}

/// Reads the sample sources of a data directory; `None` if it has none.
pub(crate) fn load(data_dir: &Path) -> Result<Option<Vec<SourceConfig>>, Failure> {
    #[derive(Deserialize)]
    struct Document {
        gateway: Gateway,
    }
    #[derive(Deserialize)]
    struct Gateway {
        sources: Vec<SourceConfig>,
    }

    let path = path(data_dir);
    let failed = |problem: String| Failure::Failed(format!("{}: {problem}", path.display()));
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error.to_string())),
    };
    let mut text = String::new();
    file.take(FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|error| failed(error.to_string()))?;
    // The parser's own text may quote a line, and with it a key.
    let document: Document = toml::from_str(&text)
        .map_err(|_| failed("is no list of sources; remove it to get fresh ones".to_owned()))?;
    Ok(Some(document.gateway.sources))
}

/// The key of a sample source, as text.
pub(crate) fn key(source: &SourceConfig) -> &str {
    let first = source.auth.secrets.first();
    first
        .and_then(|secret| secret.value.as_deref())
        .unwrap_or_default()
}

/// One key per sample source, as each vendor writes it.
struct Keys {
    api_key: String,
    passkit: String,
    envelope: String,
    standard: String,
}

impl Keys {
    fn generate() -> io::Result<Self> {
        let mut random = [0_u8; 24 + 64 + 32 + 32];
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        let (api_key, rest) = random.split_at(24);
        let (passkit, rest) = rest.split_at(64);
        let (envelope, standard) = rest.split_at(32);
        Ok(Self {
            api_key: hex(api_key),
            passkit: STANDARD.encode(passkit),
            envelope: hex(envelope),
            standard: format!("whsec_{}", STANDARD.encode(standard)),
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn text(keys: &Keys) -> String {
    let mut text = "\
# Sample sources with generated keys, made by `passline up` for trying things out.
# They are read again at each start; remove the file to get fresh ones. For real
# vendors write your own configuration and start with `passline up --config FILE`.
"
    .to_owned();
    let mut source = |name: &str, vendor: &str, scheme: &str, key: &str| {
        let _ = write!(
            text,
            "
[[gateway.sources]]
name = \"{name}\"
vendor = \"{vendor}\"
organization = \"sample\"
[gateway.sources.auth]
scheme = \"{scheme}\"
secrets = [{{ id = \"sample\", value = \"{key}\" }}]
"
        );
    };
    source("passworks", "passworks", "api_key", &keys.api_key);
    source("passkit", "passkit", "hmac", &keys.passkit);
    source("standard", "standard", "standard_webhooks", &keys.standard);
    source(
        "envelope",
        "signed_envelope",
        "signed_envelope",
        &keys.envelope,
    );
    // The last table's parent is still the envelope's source.
    text.push_str("[gateway.sources.envelope.kinds]\n");
    for (message_type, kind) in samples::ENVELOPE_KINDS {
        let _ = writeln!(text, "\"{message_type}\" = \"{kind}\"");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn sources_are_made_once_for_their_owner_only_and_all_can_be_built() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).unwrap().is_none());
        let path = ensure(dir.path()).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let sources = load(dir.path()).unwrap().unwrap();
        let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
        assert_eq!(names, ["passworks", "passkit", "standard", "envelope"]);
        for source in &sources {
            pass_sources::Source::build(source, &mut |secret| {
                Ok(secret.value.clone().unwrap_or_default().into_bytes())
            })
            .unwrap_or_else(|faults| panic!("{}: {faults:?}", source.name));
        }

        let keys: Vec<String> = sources
            .iter()
            .map(|source| key(source).to_owned())
            .collect();
        ensure(dir.path()).unwrap();
        let again = load(dir.path()).unwrap().unwrap();
        assert!(
            again.iter().map(key).eq(keys.iter().map(String::as_str)),
            "a restart has the same keys"
        );

        let other = tempfile::tempdir().unwrap();
        ensure(other.path()).unwrap();
        let others = load(other.path()).unwrap().unwrap();
        assert!(
            others
                .iter()
                .zip(&keys)
                .all(|(source, known)| key(source) != known),
            "keys are generated"
        );
    }

    #[test]
    fn a_damaged_file_is_refused_without_showing_what_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(path(dir.path()), "gateway = \"hunter2-hunter2\n").unwrap();
        let failure = load(dir.path()).unwrap_err().to_string();
        assert!(
            failure.contains("sources.toml") && !failure.contains("hunter2"),
            "{failure}"
        );
    }
}
