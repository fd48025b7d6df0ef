//! Principals: who they are, by what they are known, and what they may do. Read from one file, put in force as
//! a whole or not at all.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use pass_domain::ids::SourceUid;
use pass_proto::access::{SCOPES, Scope, scope_name};
use pass_store as store;
use serde::Deserialize;
use service_kit::config::{Faults, Sources, Validate, load};
use service_kit::tls::PeerNames;
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};
use tokio_util::sync::CancellationToken;

use super::failures::Cause;
use super::token::{TokenDigest, digest, digest_from_hex};

/// Most principals.
const PRINCIPALS_MAX: usize = 1_000;
/// Most tokens of all principals: each is looked at on each call.
const TOKENS_MAX: usize = 1_024;
/// Most tokens of one principal that are valid at a time.
const TOKENS_EACH_MAX: usize = 8;
/// Most names of certificates of one principal.
const CLIENT_NAMES_MAX: usize = 16;
/// Most sources of one principal.
const SOURCES_MAX: usize = 256;
/// Most organizations of one principal.
const ORGANIZATIONS_MAX: usize = 64;
/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 128;
/// Longest name of a certificate, and longest organization, in bytes.
const TEXT_BYTES_MAX: usize = 256;
/// What stands for all sources.
const ALL: &str = "*";

/// The principals file as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PrincipalsFile {
    principals: Vec<Entry>,
}

/// A principal as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Entry {
    /// For people and logs; 1 to 128 visible ASCII characters, unique.
    name: String,
    /// SHA-256 of its tokens, in hexadecimal digits; several while they are changed.
    #[serde(default)]
    token_sha256: Vec<String>,
    /// DNS names or URIs in its client certificates.
    #[serde(default)]
    client_names: Vec<String>,
    /// What it may do.
    scopes: Vec<String>,
    /// The sources whose rows it may see, and that it may send; `"*"` is all. Written out, even if it is none.
    sources: Vec<String>,
    /// The organizations whose rows it may see, and that what it sends may name. Written out, even if it is none.
    organizations: Vec<String>,
}

/// Notes what is wrong with one principal, by its place and name.
struct Notes<'a> {
    faults: &'a mut Faults,
    at: usize,
    name: &'a str,
}

impl Notes<'_> {
    fn note(&mut self, field: &str, problem: &str, allowed: &str, fix: &str) {
        // Only what is fit for a name is repeated.
        let shown = if is_name(self.name) {
            self.name
        } else {
            "without a name"
        };
        self.faults.invalid(
            &format!("principals[{}].{field}", self.at),
            format!("principal {shown}: {problem}"),
            allowed,
            fix,
        );
    }

    fn at_most(&mut self, field: &str, count: usize, most: usize) {
        if count > most {
            let allowed = format!("at most {most}");
            self.note(
                field,
                &format!("has {count} entries"),
                &allowed,
                "list fewer",
            );
        }
    }
}

fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn is_text(text: &str) -> bool {
    (1..=TEXT_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn scope_from(name: &str) -> Option<Scope> {
    SCOPES.into_iter().find(|scope| scope_name(*scope) == name)
}

/// The name of a certificate as it is compared: DNS names in lower case, URIs as written.
fn client_name(name: &str) -> String {
    if name.contains(':') {
        name.to_owned()
    } else {
        name.to_ascii_lowercase()
    }
}

impl Validate for PrincipalsFile {
    fn validate(&self, faults: &mut Faults) {
        let count = self.principals.len();
        if count == 0 || count > PRINCIPALS_MAX {
            faults.invalid(
                "principals",
                format!("names {count} principals, so nobody could call, or far too many"),
                format!("1 to {PRINCIPALS_MAX}"),
                "add a [[principals]] table for each caller",
            );
        }
        let tokens: usize = (self.principals.iter())
            .map(|entry| entry.token_sha256.len())
            .sum();
        if tokens > TOKENS_MAX {
            faults.invalid(
                "principals",
                format!("have {tokens} tokens in all"),
                format!("at most {TOKENS_MAX}"),
                "remove those that are no longer used",
            );
        }
        let (mut names, mut digests, mut clients) =
            (HashSet::new(), HashSet::new(), HashSet::new());
        for (at, entry) in self.principals.iter().enumerate() {
            let mut notes = Notes {
                faults,
                at,
                name: &entry.name,
            };
            if !is_name(&entry.name) {
                let allowed = format!("1 to {NAME_BYTES_MAX} visible ASCII characters");
                notes.note("name", "is no name", &allowed, "choose another one");
            } else if !names.insert(entry.name.as_str()) {
                notes.note(
                    "name",
                    "is there twice",
                    "a name of its own",
                    "choose another one",
                );
            }
            entry.validate_credentials(&mut notes, &mut digests, &mut clients);
            entry.validate_rights(&mut notes);
        }
    }
}

impl Entry {
    fn validate_credentials(
        &self,
        notes: &mut Notes<'_>,
        digests: &mut HashSet<TokenDigest>,
        clients: &mut HashSet<String>,
    ) {
        notes.at_most("token_sha256", self.token_sha256.len(), TOKENS_EACH_MAX);
        notes.at_most("client_names", self.client_names.len(), CLIENT_NAMES_MAX);
        if self.token_sha256.is_empty() && self.client_names.is_empty() {
            notes.note(
                "token_sha256",
                "can never call: it has neither tokens nor client_names",
                "at least one of either",
                "add the line that `pass-state token` prints, or remove the principal",
            );
        }
        for (at, hash) in self.token_sha256.iter().enumerate() {
            let field = format!("token_sha256[{at}]");
            match digest_from_hex(hash) {
                // Never repeated: it may be the token itself.
                None => notes.note(
                    &field,
                    "is no SHA-256",
                    "64 hexadecimal digits",
                    "use the line that `pass-state token` prints, not the token",
                ),
                Some(digest) if !digests.insert(digest) => notes.note(
                    &field,
                    "is there twice",
                    "a token of its own",
                    "make one with `pass-state token`",
                ),
                Some(_) => {}
            }
        }
        for (at, name) in self.client_names.iter().enumerate() {
            let field = format!("client_names[{at}]");
            if !is_text(name) || name.contains(char::is_whitespace) {
                let allowed = format!("a DNS name or URI of at most {TEXT_BYTES_MAX} bytes");
                notes.note(
                    &field,
                    "is no name in a certificate",
                    &allowed,
                    "correct it",
                );
            } else if !clients.insert(client_name(name)) {
                notes.note(&field, "is there twice", "a name of its own", "remove one");
            }
        }
    }

    fn validate_rights(&self, notes: &mut Notes<'_>) {
        let known = SCOPES.map(scope_name).join(", ");
        if self.scopes.is_empty() {
            notes.note(
                "scopes",
                "is empty",
                &known,
                "add what it may do, or remove it",
            );
        }
        for (at, scope) in self.scopes.iter().enumerate() {
            if scope_from(scope).is_none() {
                notes.note(
                    &format!("scopes[{at}]"),
                    "is no scope",
                    &known,
                    "correct it",
                );
            }
        }
        notes.at_most("sources", self.sources.len(), SOURCES_MAX);
        notes.at_most("organizations", self.organizations.len(), ORGANIZATIONS_MAX);
        if self.sources.is_empty() && self.organizations.is_empty() {
            notes.note(
                "sources",
                "may see nothing: it has neither sources nor organizations",
                "uids of sources, or \"*\" for all",
                "add what it may see, or remove the principal",
            );
        }
        let sends = self.scopes.iter().any(|scope| scope == "ingest");
        if sends && self.sources.is_empty() && !self.organizations.is_empty() {
            notes.note(
                "sources",
                "may send nothing: it has the scope ingest and no sources",
                "uids of the sources that it sends, or \"*\" for all",
                "list its sources, or take the scope away",
            );
        }
        let all = self.sources.iter().any(|source| source == ALL);
        if all && (self.sources.len() > 1 || !self.organizations.is_empty()) {
            notes.note(
                "sources",
                "has \"*\" and names something else, too",
                "\"*\" alone, with organizations = []",
                "remove what is not meant",
            );
        }
        for (at, source) in self.sources.iter().enumerate() {
            if source != ALL && SourceUid::new(source).is_err() {
                let field = format!("sources[{at}]");
                notes.note(
                    &field,
                    "is no source's uid",
                    "a uid, or \"*\" for all",
                    "correct it",
                );
            }
        }
        for (at, organization) in self.organizations.iter().enumerate() {
            if organization == ALL || !is_text(organization) {
                let allowed = format!("a name of 1 to {TEXT_BYTES_MAX} bytes");
                notes.note(
                    &format!("organizations[{at}]"),
                    "is no organization",
                    &allowed,
                    "to see everything set sources = [\"*\"]",
                );
            }
        }
    }
}

/// A principal in force.
#[derive(Debug)]
pub(crate) struct Principal {
    /// `None` is everyone, where nobody is asked who they are.
    entry: Option<Entry>,
    scopes: Vec<Scope>,
    visible: store::Scope,
    changed: CancellationToken,
}

impl Principal {
    fn of(entry: Entry) -> Arc<Self> {
        let scopes: Vec<Scope> = entry
            .scopes
            .iter()
            .filter_map(|name| scope_from(name))
            .collect();
        let visible = if entry.sources.iter().any(|source| source == ALL) {
            store::Scope::everything()
        } else {
            let sources = entry.sources.iter();
            store::Scope::limited(
                sources.filter_map(|source| SourceUid::new(source).ok()),
                entry.organizations.iter().cloned(),
            )
        };
        let personal = scopes.contains(&Scope::ReadPersonal);
        Arc::new(Self {
            visible: visible.with_personal(personal),
            scopes,
            entry: Some(entry),
            changed: CancellationToken::new(),
        })
    }
}

/// Who makes a call. Only the access layer makes one for a call.
#[derive(Clone, Debug)]
pub(crate) struct Caller(Arc<Principal>);

impl Caller {
    /// Everyone, where nobody is asked who they are.
    pub(super) fn everyone() -> Self {
        Self(Arc::new(Principal {
            entry: None,
            scopes: SCOPES.to_vec(),
            visible: store::Scope::everything(),
            changed: CancellationToken::new(),
        }))
    }

    /// The principal's name; `-` where nobody is asked who they are.
    pub(crate) fn name(&self) -> &str {
        self.0.entry.as_ref().map_or("-", |entry| &entry.name)
    }

    pub(super) fn holds(&self, scope: Scope) -> bool {
        self.0.scopes.contains(&scope)
    }

    /// What it may see.
    pub(crate) fn scope(&self) -> &store::Scope {
        &self.0.visible
    }

    /// Cancelled when the principal is gone, or not what it was: streams that it opened should end.
    pub(crate) fn changed(&self) -> &CancellationToken {
        &self.0.changed
    }
}

/// Everyone who may call, found by what they present.
#[derive(Debug)]
pub(super) struct Principals {
    list: Vec<Arc<Principal>>,
    tokens: Vec<(TokenDigest, u32)>,
    clients: HashMap<String, usize>,
}

impl Principals {
    /// Reads the file.
    ///
    /// # Errors
    /// Everything that is wrong with it, by principal and field.
    pub(super) fn read(path: &Path) -> Result<Self, Faults> {
        let sources = Sources {
            file: Some(path.to_owned()),
            ..Sources::default()
        };
        let file: PrincipalsFile = load(&sources)?;
        Ok(Self::of(
            file.principals.into_iter().map(Principal::of).collect(),
        ))
    }

    fn of(list: Vec<Arc<Principal>>) -> Self {
        let (mut tokens, mut clients) = (Vec::new(), HashMap::new());
        for (at, principal) in list.iter().enumerate() {
            let Some(entry) = &principal.entry else {
                continue;
            };
            let number = u32::try_from(at).expect("principals are few");
            let digests = entry
                .token_sha256
                .iter()
                .filter_map(|hash| digest_from_hex(hash));
            tokens.extend(digests.map(|digest| (digest, number)));
            clients.extend(
                entry
                    .client_names
                    .iter()
                    .map(|name| (client_name(name), at)),
            );
        }
        Self {
            list,
            tokens,
            clients,
        }
    }

    /// The name of one that is known by its certificate, if any is.
    pub(super) fn first_with_client_names(&self) -> Option<&str> {
        let mut entries = (self.list.iter()).filter_map(|principal| principal.entry.as_ref());
        let found = entries.find(|entry| !entry.client_names.is_empty())?;
        Some(&found.name)
    }

    /// These, in the place of others: who did not change stays the same principal.
    pub(super) fn succeeding(self, older: &Self) -> Self {
        let mut kept: HashMap<&str, &Arc<Principal>> = (older.list.iter())
            .filter_map(|principal| Some((principal.entry.as_ref()?.name.as_str(), principal)))
            .collect();
        let mut list = self.list;
        for principal in &mut list {
            let name = principal.entry.as_ref().map_or("", |entry| &entry.name);
            if let Some(same) = kept
                .get(name)
                .filter(|known| known.entry == principal.entry)
            {
                let same = Arc::clone(same);
                kept.remove(name);
                *principal = same;
            }
        }
        kept.values().for_each(|gone| gone.changed.cancel());
        Self::of(list)
    }

    /// Who has the token. The work is the same for every token, whether somebody has it or not.
    pub(super) fn by_token(&self, token: Option<&[u8]>) -> Result<Caller, Cause> {
        let digest = digest(token.unwrap_or_default());
        let mut found = u32::MAX;
        for (known, at) in &self.tokens {
            found.conditional_assign(at, known.ct_eq(&digest));
        }
        let principal = usize::try_from(found).ok().and_then(|at| self.list.get(at));
        match (token, principal) {
            (Some(_), Some(principal)) => Ok(Caller(Arc::clone(principal))),
            (Some(_), None) => Err(Cause::Token),
            (None, _) => Err(Cause::Malformed),
        }
    }

    /// Whose certificate has these names: nobody's, if some are of one and some of another.
    pub(super) fn by_names(&self, names: &PeerNames) -> Result<Caller, Cause> {
        let found: HashSet<usize> = (names.iter())
            .filter_map(|name| self.clients.get(name).copied())
            .collect();
        let mut found = found.into_iter();
        match (found.next(), found.next()) {
            (Some(at), None) => Ok(Caller(Arc::clone(&self.list[at]))),
            _ if !names.is_authenticated() => Err(Cause::Missing),
            _ => Err(Cause::Certificate),
        }
    }
}

#[cfg(test)]
mod tests;
