//! The one filter language, spoken by every list and every subscription.
//!
//! The grammar is a strict subset of AIP-160, with its precedence; what AIP-160
//! leaves to the service is settled below. A filter is parsed once, against a
//! [`Schema`], into a typed expression; evaluating it allocates nothing. This
//! module knows nothing of passes, events, requests or storage: it learns the
//! fields from the schema and the values from a [`Record`]. Start reading at
//! [`Filter::parse`]; the grammar is in `parse.rs`, the evaluation in
//! `expression.rs`.
//!
//! # Language
//!
//! ```text
//! filter      = [ conjunction ]                    ; empty: everything matches
//! conjunction = disjunction { "AND" disjunction }
//! disjunction = negation { "OR" negation }         ; OR binds tighter than AND
//! negation    = [ "NOT" | "-" ] ( condition | "(" conjunction ")" )
//! condition   = field operator value | field ":" "*"
//! field       = name { "." name } [ "." ( name | quoted ) ]   ; last: map key
//! operator    = "=" | "!=" | "<" | "<=" | ">" | ">=" | ":"
//! value       = quoted | word                      ; word: A-Z a-z 0-9 _ - .
//! ```
//!
//! - As AIP-160 demands, `a AND b OR c` means `a AND (b OR c)`. Use
//!   parentheses where a reader might think otherwise.
//! - Conditions side by side without an operator, a bare value without a
//!   field, functions and lower-case `and` are refused.
//! - Quoted text stands in `"` or `'` and knows the escapes `\"`, `\'`, `\\`,
//!   `\n`, `\t` and `\uXXXX`. `*` in quotes is an ordinary character: unlike
//!   AIP-160's, our `=` knows no patterns.
//!
//! | type | operators | value |
//! |---|---|---|
//! | text | `=` `!=`, `:` (contains, case-sensitive) | word or quoted |
//! | enum | `=` `!=` | name without prefix, case-sensitive |
//! | integer | all but `:` | 64-bit signed decimal |
//! | boolean | `=` `!=` | `true` or `false` |
//! | time | all but `:` | quoted RFC 3339 with an offset |
//! | set of texts | `:` (is a member) | word or quoted |
//! | map of texts | `:` (has the key) | word or quoted |
//! | entry of a map, `field.key` | as text | as text |
//!
//! `field:*` asks for presence and works for every type; for a set or a map
//! it means "not empty".
//!
//! # Absent values
//!
//! A condition on an absent value is false, except for `!=`, which is true;
//! `NOT` then turns whatever came out around. So `NOT count > 3` also matches
//! records without a count; add `AND count:*` to leave those out.
//!
//! # Bounds
//!
//! [`TEXT_BYTES_MAX`], [`DEPTH_MAX`] and [`TERMS_MAX`].

mod display;
mod error;
mod expression;
mod parse;
mod scan;
mod schema;
#[cfg(test)]
mod tests;

use std::fmt;

use jiff::Timestamp;

pub use self::error::FilterError;
use self::expression::{Expression, Literal, Operator, Term, Test};
pub use self::schema::{Field, FieldType, Record, Schema, Value};

/// Limits the length of a filter's text, in bytes, both as written and in its
/// canonical form.
pub const TEXT_BYTES_MAX: usize = 4_096;

/// Limits how deep parentheses nest.
pub const DEPTH_MAX: usize = 32;

/// Limits the number of conditions in a filter.
pub const TERMS_MAX: usize = 64;

/// Decides which records are wanted.
///
/// The default matches everything. Two filters are equal if they are the same
/// expression; spelling (white space, `-` for `NOT`, quotes, needless
/// parentheses) doesn't count, the order of conditions does.
///
/// `Display` writes the canonical text: it parses to an equal filter, equal
/// filters write equal texts, and it is at most [`TEXT_BYTES_MAX`] bytes long,
/// so it may stand in a page token. It has no needless parentheses.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Absent if everything matches.
    root: Option<Expression>,
}

impl Filter {
    /// Reads a filter over the fields of `schema`. Empty text, or only white
    /// space, matches everything.
    ///
    /// # Errors
    ///
    /// [`FilterError`] tells where the text leaves the language, names an
    /// unknown field or enum value, has a value of the wrong type, or exceeds
    /// a bound; it names the fix.
    pub fn parse(text: &str, schema: &'static Schema) -> Result<Self, FilterError> {
        let filter = Self {
            root: parse::parse(text, schema)?,
        };
        let canonical_bytes = display::canonical_bytes(&filter);
        if canonical_bytes > TEXT_BYTES_MAX {
            let message = format!(
                "filter is {canonical_bytes} bytes in its canonical form, above the bound of \
                 {TEXT_BYTES_MAX}; shorten it"
            );
            return Err(FilterError::at(text, 0, message));
        }
        Ok(filter)
    }

    /// Tells whether the filter was empty, so that every record matches and
    /// none need be asked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// Tells whether the record is wanted. Allocates nothing itself.
    #[must_use]
    pub fn matches(&self, record: &(impl Record + ?Sized)) -> bool {
        self.root.as_ref().is_none_or(|root| root.matches(record))
    }

    /// Returns the text that the field of every matching record must equal,
    /// if the filter says so at its top level (`source = "acme" AND …`), to be
    /// looked up in an index. If it names several, the first is returned.
    ///
    /// The answer narrows the candidates; each still has to pass
    /// [`Filter::matches`].
    #[must_use]
    pub fn required_text(&self, field: u16) -> Option<&str> {
        self.required(field)
            .find_map(|comparison| match comparison {
                (Operator::Equal, Literal::Text(text)) => Some(&**text),
                _ => None,
            })
    }

    /// Returns the earliest and the latest time, both inclusive, between which
    /// the field of every matching record must lie, as far as the filter says
    /// so at its top level. The earliest may be after the latest: then nothing
    /// matches.
    ///
    /// The answer narrows the candidates, rounding `<` and `>` to the
    /// inclusive side; each still has to pass [`Filter::matches`].
    #[must_use]
    pub fn required_time_range(&self, field: u16) -> (Option<Timestamp>, Option<Timestamp>) {
        let (mut earliest, mut latest) = (None::<Timestamp>, None::<Timestamp>);
        for comparison in self.required(field) {
            let (operator, Literal::Time(time)) = comparison else {
                continue;
            };
            let (bounds_below, bounds_above) = match operator {
                Operator::Equal => (true, true),
                Operator::Greater | Operator::GreaterOrEqual => (true, false),
                Operator::Less | Operator::LessOrEqual => (false, true),
                Operator::NotEqual => (false, false),
            };
            if bounds_below {
                earliest = Some(earliest.map_or(*time, |known| known.max(*time)));
            }
            if bounds_above {
                latest = Some(latest.map_or(*time, |known| known.min(*time)));
            }
        }
        (earliest, latest)
    }

    /// Walks the comparisons of a plain field that every matching record
    /// passes.
    fn required(&self, field: u16) -> impl Iterator<Item = (Operator, &Literal)> {
        let conjuncts = match &self.root {
            None => &[],
            Some(Expression::All(parts)) => parts.as_slice(),
            Some(single) => std::slice::from_ref(single),
        };
        conjuncts.iter().filter_map(move |part| match part {
            Expression::Term(Term {
                field: of,
                key: None,
                test: Test::Compare(operator, literal),
            }) if of.id == field => Some((*operator, literal)),
            _ => None,
        })
    }
}

impl fmt::Debug for Filter {
    /// Writes the canonical text; the fields' tables would bury it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Filter({self})")
    }
}
