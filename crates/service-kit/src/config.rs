//! Configuration: defaults in code, then one TOML file, then environment
//! variables; every fault reported in one go.
//!
//! [`load`] lays the sources over each other as one TOML tree, remembers where
//! each key came from and deserializes the result. When a value does not fit,
//! its key is noted, stripped and the rest is tried again, so one run names all
//! mistakes: unknown keys, wrong types and, through [`Validate`], values that
//! make no sense together.
//!
//! Environment variables are named `PREFIX__PART__KEY`; `__` separates the
//! parts of the path and names are lower-cased, so keys that are to be reached
//! this way must be lower case without dashes. A value is taken as a string;
//! if the target refuses strings it is read as TOML (`true`, `12`, `0.5`,
//! `["a", "b"]`, `{ file = "…" }`).
//!
//! By convention of this crate a table with the single key `env` names an
//! environment variable to take a secret from (see [`SecretSource`]).

use std::path::PathBuf;

use serde::de::DeserializeOwned;

mod fault;
mod layers;
mod probe;
mod secret;
mod units;

pub use fault::{Fault, Faults, Origin};
pub use secret::{Secret, SecretSource};
pub use units::{ByteSize, Duration, UnitError};

use layers::{Layers, Segment};

/// Rounds of "strip the key and try again" before giving up; also the most
/// type faults one load reports.
const ROUNDS_MAX: usize = 256;

/// Where configuration is read from; all of it is passed in, so that a test
/// owns it.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The TOML file; `None` means defaults and environment only.
    pub file: Option<PathBuf>,
    /// The prefix of environment variables, without the `__` (`"GATEWAY"`).
    pub env_prefix: &'static str,
    /// The environment: pass [`process_env`] in a binary.
    pub env: Vec<(String, String)>,
    /// Takes only this top-level table of the file, for files that several
    /// services share; other tables are ignored, an absent one is empty.
    pub section: Option<&'static str>,
}

/// Checks of values that types can't express.
pub trait Validate {
    /// Adds everything that is wrong to `faults`; paths are relative to `self`.
    fn validate(&self, faults: &mut Faults);
}

/// Returns the process environment, leaving out what is not UTF-8.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one reader of the environment"
)]
pub fn process_env() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Loads one table of a configuration, whose variables begin with `env_prefix`, and checks that it can be read. The rest
/// of the file, and whatever the table names, is not looked at.
///
/// # Errors
/// Every fault found in the table, or the one of a file that is no TOML.
pub fn load_table<T: DeserializeOwned>(
    from: &Sources,
    section: &'static str,
    env_prefix: &'static str,
) -> Result<T, Faults> {
    #[derive(serde::Deserialize)]
    #[serde(transparent)]
    struct Unchecked<T>(T);
    impl<T> Validate for Unchecked<T> {
        fn validate(&self, _: &mut Faults) {}
    }
    let table = Sources {
        env_prefix,
        section: Some(section),
        ..from.clone()
    };
    load::<Unchecked<T>>(&table).map(|Unchecked(table)| table)
}

/// Loads and checks a configuration.
///
/// # Errors
/// Returns every fault found, never just the first; a fault's text never
/// repeats a string value, so a misplaced secret is not printed.
pub fn load<C: DeserializeOwned + Validate>(source: &Sources) -> Result<C, Faults> {
    let mut faults = Faults::default();
    let mut layers = Layers::read(source, &mut faults);
    let mut stripped: Vec<Vec<Segment>> = Vec::new();
    let mut unknown: Vec<Vec<Segment>> = Vec::new();
    let mut config = None;

    for _ in 0..ROUNDS_MAX {
        match attempt::<C>(&layers, &mut unknown) {
            Ok(loaded) => {
                config = Some(loaded);
                break;
            }
            Err(refusal) => {
                if layers.reread_as_toml(&refusal.path) {
                    continue;
                }
                // What lacks a stripped key is its consequence, not news.
                let original = layers.original(&refusal.path);
                if !stripped.iter().any(|path| path.starts_with(&original)) {
                    faults.add(refusal.fault(&original, &layers));
                }
                stripped.push(original);
                // A missing key can't be stripped; its table is, so that the
                // rest can still be looked at.
                let mut path = refusal.path;
                while !path.is_empty() && !layers.remove(&path) {
                    path.pop();
                }
                if path.is_empty() {
                    break;
                }
            }
        }
    }

    for path in unknown {
        faults.add(unknown_fault::<C>(&path, &layers));
    }
    if let Some(config) = config {
        let mut semantic = Faults::default();
        config.validate(&mut semantic);
        for mut fault in semantic.into_vec() {
            let about_default = stripped
                .iter()
                .any(|path| !path.is_empty() && layers::path_text(path) == fault.path);
            if !about_default {
                fault.origin = layers.origin_of_text(&fault.path);
                faults.add(fault);
            }
        }
        if faults.is_empty() {
            return Ok(config);
        }
    }
    Err(faults)
}

/// Why deserialization stopped.
struct Refusal {
    path: Vec<Segment>,
    message: String,
    missing: bool,
}

impl Refusal {
    fn fault(&self, original: &[Segment], layers: &Layers) -> Fault {
        let path = layers::path_text(original);
        let (problem, allowed) = match self.message.split_once(", expected ") {
            Some((problem, allowed)) => (problem.to_owned(), Some(allowed.to_owned())),
            None => (self.message.clone(), None),
        };
        let fix = if self.missing {
            format!("add {path} to the file or set its environment variable")
        } else {
            format!("correct the value of {path} or remove it")
        };
        Fault {
            origin: layers.origin(original),
            path,
            problem,
            allowed,
            fix: Some(fix),
        }
    }
}

fn attempt<C: DeserializeOwned>(
    layers: &Layers,
    unknown: &mut Vec<Vec<Segment>>,
) -> Result<C, Refusal> {
    let mut track = serde_path_to_error::Track::new();
    let tree = toml::Value::Table(layers.tree().clone());
    let result = {
        let mut note = |path: serde_ignored::Path<'_>| {
            let path = layers.original(&layers::from_ignored(&path));
            if !unknown.contains(&path) {
                unknown.push(path);
            }
        };
        let tracked = serde_path_to_error::Deserializer::new(tree, &mut track);
        let ignored = serde_ignored::Deserializer::new(tracked, &mut note);
        C::deserialize(ignored)
    };
    result.map_err(|error| {
        let mut path = layers::from_tracked(&track.path());
        let message = redact(error.message());
        let missing = quoted_after(&message, "missing field ").map(str::to_owned);
        let unknown_field = quoted_after(&message, "unknown field ").map(str::to_owned);
        if let Some(key) = missing.as_ref().or(unknown_field.as_ref())
            && (missing.is_some() || path.last() != Some(&Segment::Key(key.clone())))
        {
            path.push(Segment::Key(key.clone()));
        }
        Refusal {
            path,
            missing: missing.is_some(),
            message: if missing.is_some() {
                "required key is missing".to_owned()
            } else if unknown_field.is_some() {
                message.replacen("unknown field", "unknown key", 1)
            } else {
                message
            },
        }
    })
}

fn quoted_after<'a>(message: &'a str, lead: &str) -> Option<&'a str> {
    message
        .strip_prefix(lead)?
        .strip_prefix('`')?
        .split('`')
        .next()
}

/// Takes string values out of serde's messages (`invalid type: string "x",
/// expected …`, ``unknown variant `x`, expected …``): they may be secrets in
/// the wrong place.
fn redact(message: &str) -> String {
    if let Some(start) = message.find("string \"")
        && let Some(end) = message.rfind("\", expected ")
        && start < end
    {
        return format!("{}a string{}", &message[..start], &message[end + 1..]);
    }
    // A secret in place of a table that says where the secret is reads as the name of a variant.
    if let Some(start) = message.find("unknown variant `")
        && let Some(end) = message.rfind("`, expected ")
    {
        return format!("{}unknown value{}", &message[..start], &message[end + 1..]);
    }
    message.to_owned()
}

fn unknown_fault<C: DeserializeOwned>(path: &[Segment], layers: &Layers) -> Fault {
    let (allowed, fix) = match path.split_last() {
        Some((Segment::Key(key), parents)) => match probe::known_keys::<C>(parents) {
            Some(known) => (
                Some(known.join(", ")),
                match probe::nearest(key, known) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "remove it".to_owned(),
                },
            ),
            None => (None, "remove it".to_owned()),
        },
        _ => (None, "remove it".to_owned()),
    };
    Fault {
        path: layers::path_text(path),
        origin: layers.origin(path),
        problem: "unknown key".to_owned(),
        allowed,
        fix: Some(fix),
    }
}

#[cfg(test)]
mod tests;
