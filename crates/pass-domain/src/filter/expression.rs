//! The typed expression and its evaluation.
//!
//! Invariants, kept by the constructors and by `parse.rs`: `All` and `Any`
//! have at least two parts, none of their own sort; `Not` holds no `Not`; a
//! term's test fits its field's type. So one meaning that differs only in
//! parentheses has one form, and the canonical text is unique.

use std::cmp::Ordering;

use jiff::Timestamp;

use super::schema::{Field, FieldType, Record, Value};

/// A condition on a record, or several of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expression {
    All(Vec<Expression>),
    Any(Vec<Expression>),
    Not(Box<Expression>),
    Term(Term),
}

/// One condition on one field, or on the entry `key` of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Term {
    pub(super) field: &'static Field,
    pub(super) key: Option<Box<str>>,
    pub(super) test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Test {
    /// There is a value, an entry, or at least one member.
    Present,
    /// Order is asked only of integers and times.
    Compare(Operator, Literal),
    /// The text has this part.
    Contains(Box<str>),
    /// The set has this member.
    Member(Box<str>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Literal {
    Text(Box<str>),
    /// The first name that the field's table has for the number, and the
    /// number.
    Enum(&'static str, i32),
    Integer(i64),
    Boolean(bool),
    Time(Timestamp),
}

impl Expression {
    /// Joins at least one part with AND.
    pub(super) fn all(parts: Vec<Self>) -> Self {
        let flat = parts.into_iter().flat_map(|part| match part {
            Self::All(parts) => parts,
            other => vec![other],
        });
        Self::single_or(flat.collect(), Self::All)
    }

    /// Joins at least one part with OR.
    pub(super) fn any(parts: Vec<Self>) -> Self {
        let flat = parts.into_iter().flat_map(|part| match part {
            Self::Any(parts) => parts,
            other => vec![other],
        });
        Self::single_or(flat.collect(), Self::Any)
    }

    /// Turns the expression around.
    pub(super) fn negated(self) -> Self {
        match self {
            Self::Not(inner) => *inner,
            other => Self::Not(Box::new(other)),
        }
    }

    fn single_or(mut parts: Vec<Self>, join: fn(Vec<Self>) -> Self) -> Self {
        match parts.pop() {
            Some(single) if parts.is_empty() => single,
            last => {
                parts.extend(last);
                join(parts)
            }
        }
    }

    pub(super) fn matches(&self, record: &(impl Record + ?Sized)) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(|part| part.matches(record)),
            Self::Any(parts) => parts.iter().any(|part| part.matches(record)),
            Self::Not(inner) => !inner.matches(record),
            Self::Term(term) => term.matches(record),
        }
    }
}

impl Term {
    fn matches(&self, record: &(impl Record + ?Sized)) -> bool {
        let id = self.field.id;
        match (&self.key, &self.field.field_type) {
            (None, FieldType::TextSet | FieldType::TextMap) => {
                record.set_any(id, &mut |member| match &self.test {
                    Test::Present => true,
                    Test::Member(wanted) => member == &**wanted,
                    Test::Compare(..) | Test::Contains(_) => false,
                })
            }
            (Some(key), _) => self.test.holds(record.map_value(id, key).into()),
            (None, _) => self.test.holds(record.value(id)),
        }
    }
}

impl Test {
    fn holds(&self, value: Value<'_>) -> bool {
        match self {
            Self::Present => value != Value::Absent,
            Self::Compare(operator, literal) => match literal.compare(value) {
                Some(ordering) => operator.accepts(ordering),
                None => *operator == Operator::NotEqual,
            },
            Self::Contains(part) => matches!(value, Value::Text(text) if text.contains(&**part)),
            Self::Member(_) => false,
        }
    }
}

impl Operator {
    /// The sign in a filter's text.
    pub(super) fn sign(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        }
    }

    /// Takes how the record's value stands to the literal.
    fn accepts(self, ordering: Ordering) -> bool {
        match self {
            Self::Equal => ordering.is_eq(),
            Self::NotEqual => ordering.is_ne(),
            Self::Less => ordering.is_lt(),
            Self::LessOrEqual => ordering.is_le(),
            Self::Greater => ordering.is_gt(),
            Self::GreaterOrEqual => ordering.is_ge(),
        }
    }
}

impl Literal {
    /// Tells how the value stands to the literal; nothing if it is absent.
    fn compare(&self, value: Value<'_>) -> Option<Ordering> {
        match (value, self) {
            (Value::Text(value), Self::Text(literal)) => Some(value.cmp(literal)),
            (Value::Enum(value), Self::Enum(_, literal)) => Some(value.cmp(literal)),
            (Value::Integer(value), Self::Integer(literal)) => Some(value.cmp(literal)),
            (Value::Boolean(value), Self::Boolean(literal)) => Some(value.cmp(literal)),
            (Value::Time(value), Self::Time(literal)) => Some(value.cmp(literal)),
            (value, literal) => {
                debug_assert_eq!(
                    value,
                    Value::Absent,
                    "a record answers with the type of its schema, here that of {literal:?}"
                );
                None
            }
        }
    }
}
