//! The canonical text of a filter: the one spelling by which equal filters
//! are recognised.
//!
//! Parentheses stand only where the language needs them (AND within OR, and
//! around what NOT turns), so that the canonical text never nests deeper than
//! the text it came from and always parses again.

use std::fmt::{self, Display, Formatter, Write};

use super::expression::{Expression, Literal, Term, Test};
use super::{FieldType, Filter};

/// Measures the canonical text, in bytes, without making it.
pub(super) fn canonical_bytes(filter: &Filter) -> usize {
    struct Count(usize);
    impl Write for Count {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0 += text.len();
            Ok(())
        }
    }
    let mut count = Count(0);
    write!(count, "{filter}").expect("counting bytes cannot fail");
    count.0
}

impl Display for Filter {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        self.root
            .as_ref()
            .map_or(Ok(()), |root| root.fmt(formatter))
    }
}

impl Display for Expression {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(parts) => {
                for (index, part) in parts.iter().enumerate() {
                    formatter.write_str(if index == 0 { "" } else { " AND " })?;
                    part.fmt(formatter)?;
                }
                Ok(())
            }
            Self::Any(parts) => {
                for (index, part) in parts.iter().enumerate() {
                    formatter.write_str(if index == 0 { "" } else { " OR " })?;
                    match part {
                        Self::All(_) => write!(formatter, "({part})")?,
                        part => part.fmt(formatter)?,
                    }
                }
                Ok(())
            }
            Self::Not(inner) => match &**inner {
                Self::Term(term) => write!(formatter, "NOT {term}"),
                joined => write!(formatter, "NOT ({joined})"),
            },
            Self::Term(term) => term.fmt(formatter),
        }
    }
}

impl Display for Term {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let name = self.field.name;
        match (&self.key, &self.test) {
            (Some(key), Test::Present) => return write!(formatter, "{name}:{}", Quoted(key)),
            (Some(key), _) => write!(formatter, "{name}.{}", Quoted(key))?,
            (None, _) => formatter.write_str(name)?,
        }
        match &self.test {
            Test::Present => formatter.write_str(":*"),
            Test::Compare(operator, literal) => write!(formatter, " {} {literal}", operator.sign()),
            Test::Contains(text) | Test::Member(text) => write!(formatter, ":{}", Quoted(text)),
        }
    }
}

impl Display for Literal {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => Quoted(text).fmt(formatter),
            Self::Enum(name, _) => formatter.write_str(name),
            Self::Integer(number) => number.fmt(formatter),
            Self::Boolean(boolean) => boolean.fmt(formatter),
            Self::Time(time) => write!(formatter, "\"{time}\""),
        }
    }
}

/// Names the type in messages.
impl Display for FieldType {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Text => "text",
            Self::Enum(_) => "enum",
            Self::Integer => "integer",
            Self::Boolean => "boolean",
            Self::Time => "time",
            Self::TextSet => "set of texts",
            Self::TextMap => "map of texts",
        })
    }
}

/// Writes text in double quotes; other characters than controls, `"` and `\`
/// stand for themselves.
struct Quoted<'a>(&'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_char('"')?;
        for character in self.0.chars() {
            match character {
                '"' => formatter.write_str("\\\"")?,
                '\\' => formatter.write_str("\\\\")?,
                '\n' => formatter.write_str("\\n")?,
                '\t' => formatter.write_str("\\t")?,
                control if control.is_control() => {
                    write!(formatter, "\\u{:04x}", u32::from(control))?;
                }
                plain => formatter.write_char(plain)?,
            }
        }
        formatter.write_char('"')
    }
}
