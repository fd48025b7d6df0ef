//! What a channel trusts and shows: TLS and a bearer token.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use http::{HeaderMap, HeaderValue, header};
use serde::{Deserialize, Serialize};

use super::ChannelConfig;
use crate::config::Faults;
use crate::reload::{Refusal, Reload};
use crate::tls::TlsClient;

/// Longest token, in bytes.
const TOKEN_BYTES_MAX: usize = 4096;

/// Where a bearer token comes from: `{ file = "…" }` or `{ env = "…" }`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenSource {
    /// A file that holds it; line breaks and spaces around it don't count. Taken
    /// in again when it changes.
    File(PathBuf),
    /// An environment variable that holds it.
    Env(String),
}

/// What a channel trusts and shows. Clones share the state, and with it what is
/// reloaded: TLS for connections from then on, the token for calls. Each is a part
/// by itself, so that one that is broken holds up no change of the other.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    pub(super) tls: Option<TlsClient>,
    token: Option<Token>,
}

/// The token of a channel's calls; clones share it.
#[derive(Clone, Debug)]
pub struct Token {
    /// Where it stands in the configuration.
    key: Arc<str>,
    source: Arc<TokenSource>,
    env: Arc<[(String, String)]>,
    /// The header; marked as sensitive, so `Debug` does not show it.
    value: Arc<RwLock<HeaderValue>>,
}

impl Credentials {
    /// Reads what `config` names; `env` holds the variables that a token may be
    /// in, and faults stand under `key`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(
        key: &str,
        config: &ChannelConfig,
        env: &[(String, String)],
    ) -> Result<Self, Faults> {
        let tls = match config.endpoint.is_tls() {
            true => {
                let tls = config.tls.clone().unwrap_or_default();
                Some(TlsClient::load(&format!("{key}.tls"), &tls)?)
            }
            false => None,
        };
        let token = match &config.token {
            Some(source) => {
                let key = format!("{key}.token");
                let variable = match source {
                    TokenSource::File(_) => None,
                    TokenSource::Env(name) => env.iter().find(|(known, _)| known == name),
                };
                let env: Arc<[_]> = variable.cloned().into_iter().collect();
                let value = read(&key, source, &env)?;
                Some(Token {
                    key: key.into(),
                    source: Arc::new(source.clone()),
                    env,
                    value: Arc::new(RwLock::new(value)),
                })
            }
            None => None,
        };
        Ok(Self { tls, token })
    }

    /// Returns the TLS, to be reloaded, if endpoints have it.
    pub fn tls(&self) -> Option<TlsClient> {
        self.tls.clone()
    }

    /// Returns the token, to be reloaded, if there is one.
    pub fn token(&self) -> Option<Token> {
        self.token.clone()
    }

    /// Adds the token to a call's headers.
    pub(super) fn authorize(&self, headers: &mut HeaderMap) {
        if let Some(token) = &self.token {
            let value = token.value.read().unwrap_or_else(PoisonError::into_inner);
            headers.insert(header::AUTHORIZATION, value.clone());
        }
    }
}

impl Reload for Token {
    fn files(&self) -> Vec<PathBuf> {
        match &*self.source {
            TokenSource::File(file) => vec![file.clone()],
            TokenSource::Env(_) => Vec::new(),
        }
    }

    fn try_apply(&mut self) -> Result<(), Refusal> {
        let new = read(&self.key, &self.source, &self.env)?;
        *self.value.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }
}

/// Reads a token and makes its header. What is in it is never told.
fn read(key: &str, source: &TokenSource, env: &[(String, String)]) -> Result<HeaderValue, Faults> {
    let refuse = |problem: String, fix: &str| {
        let mut faults = Faults::default();
        let allowed = format!("1 to {TOKEN_BYTES_MAX} visible ASCII characters");
        faults.invalid(key, problem, allowed, fix);
        faults
    };
    let (text, place) = match source {
        TokenSource::File(file) => {
            let place = file.display().to_string();
            let text = read_file(file).map_err(|error| {
                refuse(
                    format!("{place} can't be read: {error}"),
                    "correct the path, or let the service's user read it",
                )
            })?;
            (text, place)
        }
        TokenSource::Env(name) => {
            let place = format!("environment variable {name}");
            let Some((_, text)) = env.iter().find(|(known, _)| known == name) else {
                return Err(refuse(format!("{place} is not set"), "set it to the token"));
            };
            (text.clone(), place)
        }
    };
    let token = text.trim_ascii();
    if !(1..=TOKEN_BYTES_MAX).contains(&token.len()) || !token.bytes().all(|b| b.is_ascii_graphic())
    {
        return Err(refuse(
            format!("{place} holds no token"),
            "write one token, as `pass-state token` printed it",
        ));
    }
    let mut value = HeaderValue::try_from(format!("Bearer {token}"))
        .expect("visible ASCII characters make a header");
    value.set_sensitive(true);
    Ok(value)
}

fn read_file(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(file)?
        .take(TOKEN_BYTES_MAX as u64 + 64)
        .read_to_string(&mut text)?;
    Ok(text)
}
