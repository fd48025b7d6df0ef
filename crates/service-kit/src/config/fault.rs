//! One fault per mistake, each with its place, its rule and its remedy.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::Validate;

/// Where a value came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it; the default of the code.
    #[default]
    Default,
    /// This configuration file.
    File(PathBuf),
    /// This environment variable.
    Env(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Env(name) => write!(f, "environment {name}"),
        }
    }
}

/// One mistake in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The dotted path of the key; empty for the file as a whole.
    pub path: String,
    /// Where the value came from.
    pub origin: Origin,
    /// What is wrong, as a lower-case fragment.
    pub problem: String,
    /// What would be right, if that can be said.
    pub allowed: Option<String>,
    /// What to do about it.
    pub fix: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{} ", self.path)?;
        }
        write!(f, "({}): {}", self.origin, self.problem)?;
        if let Some(allowed) = &self.allowed {
            write!(f, "; allowed: {allowed}")?;
        }
        if let Some(fix) = &self.fix {
            write!(f, "; fix: {fix}")?;
        }
        Ok(())
    }
}

/// Everything that is wrong with a configuration; prints one fault per line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    list: Vec<Fault>,
    within: Vec<String>,
}

impl Faults {
    /// Adds a fault of the value at `key`, relative to the part being checked.
    pub fn invalid(
        &mut self,
        key: &str,
        problem: impl Into<String>,
        allowed: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let mut path = self.within.join(".");
        if !path.is_empty() && !key.is_empty() {
            path.push('.');
        }
        path.push_str(key);
        self.add(Fault {
            path,
            origin: Origin::Default,
            problem: problem.into(),
            allowed: Some(allowed.into()),
            fix: Some(fix.into()),
        });
    }

    /// Adds a fault unless `value` lies in `range`: the usual floor and ceiling.
    pub fn in_range<T: PartialOrd + fmt::Display>(
        &mut self,
        key: &str,
        value: T,
        range: RangeInclusive<T>,
    ) {
        if !range.contains(&value) {
            let allowed = format!("{} to {}", range.start(), range.end());
            self.invalid(
                key,
                format!("{value} is out of range"),
                allowed.clone(),
                format!("set {key} to a value from {allowed}"),
            );
        }
    }

    /// Checks a part; its faults carry `key` in front of their paths.
    pub fn part(&mut self, key: &str, part: &(impl Validate + ?Sized)) {
        self.within(key, |faults| part.validate(faults));
    }

    /// Runs checks whose faults carry `key` in front of their paths.
    pub fn within(&mut self, key: &str, check: impl FnOnce(&mut Self)) {
        self.within.push(key.to_owned());
        check(self);
        self.within.pop();
    }

    /// Says of all faults where their values came from.
    #[must_use]
    pub fn with_origin(mut self, origin: &Origin) -> Self {
        for fault in &mut self.list {
            fault.origin.clone_from(origin);
        }
        self
    }

    /// Adds a fault as it is.
    pub fn add(&mut self, fault: Fault) {
        self.list.push(fault);
    }

    /// Says whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Returns how many faults there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Lists the faults in the order they were found.
    pub fn iter(&self) -> std::slice::Iter<'_, Fault> {
        self.list.iter()
    }

    pub(super) fn into_vec(self) -> Vec<Fault> {
        self.list
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.list.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
