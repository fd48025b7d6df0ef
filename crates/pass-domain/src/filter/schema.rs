//! What a filter knows of the records it is asked about: the contract of the
//! caller, without any of the language.

use jiff::Timestamp;

/// Lists the fields that a filter may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schema {
    /// The fields, with distinct names and ids, in the order in which an error
    /// lists them.
    pub fields: &'static [Field],
}

impl Schema {
    /// Looks a field up by its full name.
    pub(super) fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// Describes one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The name in filters: ASCII letters, digits and `_`, parts joined by
    /// `.`, as in `effect.changed`. Never `AND`, `OR` or `NOT`.
    pub name: &'static str,
    /// The number by which a [`Record`] is asked for the value.
    pub id: u16,
    /// The type, which decides the operators and values.
    pub field_type: FieldType,
}

/// Decides which operators and values a field takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// A string.
    Text,
    /// One of some named numbers. Names are ASCII letters, digits and `_`. A
    /// name `UNSPECIFIED`, or ending so after a `_`, cannot be asked for.
    Enum(&'static [(&'static str, i32)]),
    /// A signed 64-bit number.
    Integer,
    /// True or false.
    Boolean,
    /// An instant.
    Time,
    /// Several strings without order.
    TextSet,
    /// Strings by key.
    TextMap,
}

/// Carries one field's value out of a [`Record`], borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// The record has no value here. An enum that is unspecified is absent.
    Absent,
    /// The value of a [`FieldType::Text`] field.
    Text(&'a str),
    /// The number of a [`FieldType::Enum`] field.
    Enum(i32),
    /// The value of a [`FieldType::Integer`] field.
    Integer(i64),
    /// The value of a [`FieldType::Boolean`] field.
    Boolean(bool),
    /// The value of a [`FieldType::Time`] field.
    Time(Timestamp),
}

impl<'a> From<Option<&'a str>> for Value<'a> {
    fn from(text: Option<&'a str>) -> Self {
        text.map_or(Self::Absent, Value::Text)
    }
}

impl From<Option<i64>> for Value<'_> {
    fn from(number: Option<i64>) -> Self {
        number.map_or(Self::Absent, Value::Integer)
    }
}

impl From<Option<bool>> for Value<'_> {
    fn from(boolean: Option<bool>) -> Self {
        boolean.map_or(Self::Absent, Value::Boolean)
    }
}

impl From<Option<Timestamp>> for Value<'_> {
    fn from(time: Option<Timestamp>) -> Self {
        time.map_or(Self::Absent, Value::Time)
    }
}

/// Answers a filter's questions about one record.
///
/// Each method is asked only for fields of the type it serves, by the ids of
/// the schema that the filter was parsed with; an unknown id is absent. The
/// value of a field has the type its schema says: another type is a mistake
/// in the implementation, caught by an assertion in debug builds and taken as
/// absent in release builds.
pub trait Record {
    /// Returns the value of a field that is neither a set nor a map.
    fn value(&self, field: u16) -> Value<'_>;

    /// Returns one entry of a [`FieldType::TextMap`] field. A record without
    /// maps may leave this out.
    fn map_value(&self, field: u16, key: &str) -> Option<&str> {
        let _ = (field, key);
        None
    }

    /// Tells whether any member of a [`FieldType::TextSet`] field, or any key
    /// of a [`FieldType::TextMap`] field, satisfies the predicate; false if
    /// there are none. A record without either may leave this out.
    fn set_any(&self, field: u16, predicate: &mut dyn FnMut(&str) -> bool) -> bool {
        let _ = (field, predicate);
        false
    }
}
