//! A configuration of which no part can change while the process runs: it is
//! checked all the same, and who changed it is told what that needs.

use std::marker::PhantomData;
use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::{Refusal, Reload};
use crate::config::{Sources, Validate, load};

/// Watches the configuration file of a service. A change that could not be
/// started with is refused, so that it is known before the next start; of a good
/// one a WARN names the keys, which take effect only then. Secrets are compared by
/// where they come from.
#[derive(Debug)]
pub struct ConfigWatch<C> {
    from: Sources,
    started: Table,
    /// The keys that were last told.
    told: Vec<String>,
    config: PhantomData<fn() -> C>,
}

impl<C: DeserializeOwned + Serialize + Validate + 'static> ConfigWatch<C> {
    /// Takes what is written now for what the process was started with. `None` if
    /// there is no file to be watched, or it can't be read any more.
    pub fn new(from: &Sources) -> Option<Self> {
        from.file.as_ref()?;
        Some(Self {
            started: written::<C>(from).ok()?,
            from: from.clone(),
            told: Vec::new(),
            config: PhantomData,
        })
    }
}

fn written<C: DeserializeOwned + Serialize + Validate>(from: &Sources) -> Result<Table, Refusal> {
    let config: C = load(from)?;
    Ok(Table::try_from(&config)?)
}

impl<C: DeserializeOwned + Serialize + Validate + 'static> Reload for ConfigWatch<C> {
    fn files(&self) -> Vec<PathBuf> {
        self.from.file.clone().into_iter().collect()
    }

    fn try_apply(&mut self) -> Result<(), Refusal> {
        let now = written::<C>(&self.from)?;
        let mut keys = Vec::new();
        differing(&self.started, &now, "", &mut keys);
        if keys != self.told && !keys.is_empty() {
            tracing::warn!(
                keys = keys.join(", "),
                "keys were changed that take effect only when the service is started again"
            );
        }
        self.told = keys;
        Ok(())
    }
}

/// Lists the dotted paths of what is not the same, in order.
fn differing(old: &Table, new: &Table, path: &str, keys: &mut Vec<String>) {
    let added = new.keys().filter(|key| !old.contains_key(*key));
    for key in old.keys().chain(added) {
        let path = match path {
            "" => key.clone(),
            path => format!("{path}.{key}"),
        };
        match (old.get(key), new.get(key)) {
            (Some(Value::Table(old)), Some(Value::Table(new))) => {
                differing(old, new, &path, keys);
            }
            (old, new) if old != new => keys.push(path),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::listener::HttpLimits;

    #[test]
    fn changed_keys_are_told_and_a_broken_file_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "connections_max = 7\n[body]\ntotal = \"3s\"\n").unwrap();
        let from = Sources {
            file: Some(file.path().to_owned()),
            env_prefix: "KIT",
            ..Sources::default()
        };
        let mut watch = ConfigWatch::<HttpLimits>::new(&from).unwrap();
        watch.try_apply().unwrap();
        assert!(watch.told.is_empty(), "{:?}", watch.told);
        fs::write(file.path(), "[body]\ntotal = \"4s\"\n").unwrap();
        watch.try_apply().unwrap();
        assert_eq!(watch.told, ["body.total", "connections_max"]);
        fs::write(file.path(), "connections_max = 0\n").unwrap();
        let refusal = watch.try_apply().unwrap_err().to_string();
        assert!(refusal.starts_with("connections_max "), "{refusal}");
        assert!(ConfigWatch::<HttpLimits>::new(&Sources::default()).is_none());
    }
}
