//! The sources laid over each other as one TOML tree, with each key's origin.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::Sources;
use super::fault::{Fault, Faults, Origin};
use super::secret;

/// Largest configuration file that is read.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// One step into the tree.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Segment {
    Key(String),
    Index(usize),
}

/// Prints a path the way people write it: `sources[0].name`.
pub(super) fn path_text(path: &[Segment]) -> String {
    let mut text = String::new();
    for segment in path {
        match segment {
            Segment::Key(key) => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(key);
            }
            Segment::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

pub(super) fn from_ignored(path: &serde_ignored::Path<'_>) -> Vec<Segment> {
    use serde_ignored::Path as P;
    match path {
        P::Root => Vec::new(),
        P::Seq { parent, index } => {
            let mut path = from_ignored(parent);
            path.push(Segment::Index(*index));
            path
        }
        P::Map { parent, key } => {
            let mut path = from_ignored(parent);
            path.push(Segment::Key(key.clone()));
            path
        }
        P::Some { parent } | P::NewtypeStruct { parent } | P::NewtypeVariant { parent } => {
            from_ignored(parent)
        }
    }
}

pub(super) fn from_tracked(path: &serde_path_to_error::Path) -> Vec<Segment> {
    use serde_path_to_error::Segment as S;
    path.iter()
        .filter_map(|segment| match segment {
            S::Seq { index } => Some(Segment::Index(*index)),
            S::Map { key } => Some(Segment::Key(key.clone())),
            S::Enum { .. } | S::Unknown => None,
        })
        .collect()
}

/// The merged tree.
pub(super) struct Layers {
    tree: Table,
    /// What the file alone said, to tell origins.
    file_tree: Table,
    file: Option<PathBuf>,
    env: HashMap<Vec<Segment>, String>,
    /// Paths set by the environment that are still the raw string.
    raw: Vec<Vec<Segment>>,
    /// Array elements taken out, oldest first: the array's path at that moment
    /// and the index in it.
    taken_out: Vec<(Vec<Segment>, usize)>,
    variables: Vec<(String, String)>,
}

impl Layers {
    pub(super) fn read(source: &Sources, faults: &mut Faults) -> Self {
        let file_tree = source
            .file
            .as_deref()
            .and_then(|path| read_file(path, source.section, faults))
            .unwrap_or_default();
        let mut layers = Self {
            tree: file_tree.clone(),
            file_tree,
            file: source.file.clone(),
            env: HashMap::new(),
            raw: Vec::new(),
            taken_out: Vec::new(),
            variables: source.env.clone(),
        };
        let prefix = format!("{}__", source.env_prefix);
        let mut variables: Vec<_> = source
            .env
            .iter()
            .filter_map(|(name, value)| Some((name, name.strip_prefix(&prefix)?, value)))
            .collect();
        variables.sort();
        for (name, rest, value) in variables {
            layers.overlay(name, rest, value, faults);
        }
        secret::resolve_env(&mut layers.tree, &layers.variables);
        layers
    }

    pub(super) fn tree(&self) -> &Table {
        &self.tree
    }

    fn overlay(&mut self, name: &str, rest: &str, value: &str, faults: &mut Faults) {
        let parts: Vec<String> = rest.split("__").map(str::to_lowercase).collect();
        let mut fault = |problem: &str, fix: &str| {
            faults.add(Fault {
                path: parts.join("."),
                origin: Origin::Env(name.to_owned()),
                problem: problem.to_owned(),
                allowed: None,
                fix: Some(fix.to_owned()),
            });
        };
        if parts.iter().any(String::is_empty) {
            fault(
                "empty part in the name",
                "separate parts by exactly one `__`",
            );
            return;
        }
        let Some((last, parents)) = parts.split_last() else {
            return;
        };
        let mut path = Vec::with_capacity(parts.len());
        let mut table = &mut self.tree;
        for part in parents {
            path.push(Segment::Key(part.clone()));
            let entry = table
                .entry(part.clone())
                .or_insert_with(|| Value::Table(Table::new()));
            match entry {
                Value::Table(next) => table = next,
                _ => {
                    fault(
                        "a part of the name is not a table",
                        "set the whole value by one variable, in TOML syntax",
                    );
                    return;
                }
            }
        }
        path.push(Segment::Key(last.clone()));
        table.insert(last.clone(), Value::String(value.to_owned()));
        self.raw.push(path.clone());
        self.env.insert(path, name.to_owned());
    }

    /// Reads environment values at or below `path` as TOML instead of as
    /// strings; false if there was nothing to change.
    pub(super) fn reread_as_toml(&mut self, path: &[Segment]) -> bool {
        let (affected, rest) = std::mem::take(&mut self.raw)
            .into_iter()
            .partition(|raw| raw.starts_with(path));
        self.raw = rest;
        let affected: Vec<Vec<Segment>> = affected;
        let mut changed = false;
        for raw in affected {
            if let Some(slot) = find_mut(&mut self.tree, &raw)
                && let Value::String(text) = slot
                && let Some(value) = parse_value(text)
            {
                *slot = value;
                changed = true;
            }
        }
        if changed {
            secret::resolve_env(&mut self.tree, &self.variables);
        }
        changed
    }

    /// Translates a path of the current tree to what it was before elements
    /// were taken out of arrays.
    pub(super) fn original(&self, path: &[Segment]) -> Vec<Segment> {
        let mut path = path.to_vec();
        for (array, taken) in self.taken_out.iter().rev() {
            if path.starts_with(array)
                && let Some(Segment::Index(index)) = path.get_mut(array.len())
                && *index >= *taken
            {
                *index += 1;
            }
        }
        path
    }

    /// Removes the value at `path`; false if there is none.
    pub(super) fn remove(&mut self, path: &[Segment]) -> bool {
        let Some((last, parents)) = path.split_last() else {
            return false;
        };
        match (last, parents.is_empty()) {
            (Segment::Key(key), true) => self.tree.remove(key).is_some(),
            (Segment::Key(key), false) => match find_mut(&mut self.tree, parents) {
                Some(Value::Table(table)) => table.remove(key).is_some(),
                _ => false,
            },
            (Segment::Index(_), true) => false,
            (Segment::Index(index), false) => match find_mut(&mut self.tree, parents) {
                Some(Value::Array(array)) if *index < array.len() => {
                    array.remove(*index);
                    self.taken_out.push((parents.to_vec(), *index));
                    true
                }
                _ => false,
            },
        }
    }

    /// Returns who set the value at `path`; where nobody did, the file it
    /// could have been in.
    pub(super) fn origin(&self, path: &[Segment]) -> Origin {
        match (self.setter(path), &self.file) {
            (Origin::Default, Some(file)) => Origin::File(file.clone()),
            (origin, _) => origin,
        }
    }

    /// Returns who set the value at a printed path.
    pub(super) fn origin_of_text(&self, text: &str) -> Origin {
        let path: Vec<Segment> = text
            .split(['.', '['])
            .filter(|part| !part.is_empty())
            .map(|part| match part.strip_suffix(']').map(str::parse) {
                Some(Ok(index)) => Segment::Index(index),
                _ => Segment::Key(part.to_owned()),
            })
            .collect();
        self.setter(&path)
    }

    fn setter(&self, path: &[Segment]) -> Origin {
        let above = (1..=path.len()).rev();
        if let Some(name) = above.filter_map(|end| self.env.get(&path[..end])).next() {
            return Origin::Env(name.clone());
        }
        if let Some(file) = &self.file
            && find(&self.file_tree, path).is_some()
        {
            return Origin::File(file.clone());
        }
        // A table that exists only because variables set keys inside it.
        self.env
            .iter()
            .filter(|(set, _)| set.starts_with(path))
            .map(|(_, name)| name)
            .min()
            .map_or(Origin::Default, |name| Origin::Env(name.clone()))
    }
}

fn read_file(path: &Path, section: Option<&str>, faults: &mut Faults) -> Option<Table> {
    let mut fault = |problem: String, fix: &str| {
        faults.add(Fault {
            path: String::new(),
            origin: Origin::File(path.to_owned()),
            problem,
            allowed: None,
            fix: Some(fix.to_owned()),
        });
    };
    let size = std::fs::metadata(path).map(|meta| meta.len());
    let text = match size {
        Ok(bytes) if bytes > FILE_BYTES_MAX => {
            fault(
                format!("file has {bytes} bytes, more than {FILE_BYTES_MAX}"),
                "split secrets and data out of it",
            );
            return None;
        }
        Ok(_) => std::fs::read_to_string(path),
        Err(error) => Err(error),
    };
    let text = match text {
        Ok(text) => text,
        Err(error) => {
            fault(
                format!("file can't be read: {error}"),
                "check the path and its permissions",
            );
            return None;
        }
    };
    // Only the message and line: the parser's own rendering quotes the line,
    // which may hold a secret.
    let mut tree = match text.parse::<Table>() {
        Ok(tree) => tree,
        Err(error) => {
            let start = error.span().map_or(0, |span| span.start);
            let line = text[..start.min(text.len())].matches('\n').count() + 1;
            fault(
                format!("not TOML at line {line}: {}", error.message()),
                "correct the syntax of that line",
            );
            return None;
        }
    };
    match section {
        None => Some(tree),
        Some(name) => match tree.remove(name) {
            None => None,
            Some(Value::Table(table)) => Some(table),
            Some(_) => {
                fault(format!("`{name}` is not a table"), "write it as a table");
                None
            }
        },
    }
}

fn parse_value(text: &str) -> Option<Value> {
    let mut table = format!("value = {text}").parse::<Table>().ok()?;
    let single = table.len() == 1;
    table
        .remove("value")
        .filter(|value| single && !value.is_str())
}

fn find<'a>(tree: &'a Table, path: &[Segment]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let Segment::Key(key) = first else {
        return None;
    };
    rest.iter()
        .try_fold(tree.get(key)?, |value, segment| match segment {
            Segment::Key(key) => value.get(key),
            Segment::Index(index) => value.get(*index),
        })
}

fn find_mut<'a>(tree: &'a mut Table, path: &[Segment]) -> Option<&'a mut Value> {
    let (first, rest) = path.split_first()?;
    let Segment::Key(key) = first else {
        return None;
    };
    rest.iter()
        .try_fold(tree.get_mut(key)?, |value, segment| match segment {
            Segment::Key(key) => value.get_mut(key),
            Segment::Index(index) => value.get_mut(*index),
        })
}
