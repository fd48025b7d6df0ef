//! Who may call.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use service_kit::config::{Faults, Sources, Validate, load};

use crate::access::PrincipalsFile;

/// Who may call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthConfig {
    /// The file of those who may call; read again when it changes. Absent by default: nobody is asked who they
    /// are, and every caller may do everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub principals_file: Option<PathBuf>,
    /// Who may ask for the health. Default open: it tells of no pass, and probes have no credentials.
    pub health: Openness,
    /// Who may ask for the protos, if `grpc.reflection` is on. Default authenticated.
    pub reflection: Openness,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            principals_file: None,
            health: Openness::Open,
            reflection: Openness::Authenticated,
        }
    }
}

/// Who may use a service that tells of no pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Openness {
    /// Everyone.
    Open,
    /// Every principal, whatever its scopes.
    Authenticated,
}

impl Validate for AuthConfig {
    fn validate(&self, faults: &mut Faults) {
        let Some(file) = &self.principals_file else {
            return;
        };
        let sources = Sources {
            file: Some(file.clone()),
            ..Sources::default()
        };
        if let Err(inner) = load::<PrincipalsFile>(&sources) {
            for fault in inner.iter() {
                let allowed = fault.allowed.clone().unwrap_or_default();
                let fix = fault.fix.clone().unwrap_or_default();
                let problem = format!("{}: {} {}", file.display(), fault.path, fault.problem);
                faults.invalid("principals_file", problem, allowed, fix);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, ENV_PREFIX};

    fn loaded(env: &[(&str, &str)]) -> Result<Config, String> {
        let sources = Sources {
            env_prefix: ENV_PREFIX,
            env: (env.iter())
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            ..Sources::default()
        };
        load::<Config>(&sources).map_err(|faults| faults.to_string())
    }

    const ANYWHERE: (&str, &str) = ("PASS_STATE__GRPC__LISTEN", "0.0.0.0:50051");
    const INSECURE: (&str, &str) = ("PASS_STATE__GRPC__INSECURE", "true");
    const FILE: &str = "PASS_STATE__AUTH__PRINCIPALS_FILE";
    const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/principals.example.toml");

    #[test]
    fn other_machines_are_let_in_openly_only_in_so_many_words() {
        let both = loaded(&[ANYWHERE]).unwrap_err();
        assert!(both.starts_with("grpc.listen "), "{both}");
        for part in ["[grpc.tls]", "auth.principals_file", "grpc.insecure = true"] {
            assert!(both.contains(part), "{part} in {both}");
        }
        let tls = loaded(&[ANYWHERE, (FILE, EXAMPLE)]).unwrap_err();
        assert!(
            tls.contains("[grpc.tls]") && !tls.contains("without authentication"),
            "{tls}"
        );
        let open = loaded(&[ANYWHERE, INSECURE]).unwrap();
        assert_eq!(open.exposures(), ["PLAINTEXT", "UNAUTHENTICATED"]);
        let known = loaded(&[ANYWHERE, INSECURE, (FILE, EXAMPLE)]).unwrap();
        assert_eq!(known.exposures(), ["PLAINTEXT"]);
        let admin = loaded(&[("PASS_STATE__ADMIN__LISTEN", "0.0.0.0:8082")]).unwrap();
        assert_eq!(admin.exposures(), ["ADMIN_PLAINTEXT"]);
        assert!(loaded(&[INSECURE]).unwrap().exposures().is_empty());
        assert!(loaded(&[]).unwrap().exposures().is_empty());
    }

    #[test]
    fn a_broken_principals_file_is_a_fault_of_the_configuration() {
        let missing = loaded(&[(FILE, "/no/such/file.toml")]).unwrap_err();
        assert!(missing.starts_with("auth.principals_file "), "{missing}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[[principals]]\nname = \"a\"\n").unwrap();
        let broken = loaded(&[(FILE, file.path().to_str().unwrap())]).unwrap_err();
        assert!(broken.contains("principals[0].scopes"), "{broken}");
    }
}
