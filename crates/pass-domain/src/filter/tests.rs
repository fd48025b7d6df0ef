//! Tests of the filter language: `text.rs` for what is accepted and refused,
//! `evaluation.rs` for what matches, `properties.rs` for generated filters.

mod evaluation;
mod properties;
mod text;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{Field, FieldType, Filter, FilterError, Record, Schema, Value};

const SOURCE: u16 = 1;
const KIND: u16 = 2;
const COUNT: u16 = 3;
const CHANGED: u16 = 4;
const OCCUR_TIME: u16 = 5;
const TAGS: u16 = 6;
const ATTRIBUTES: u16 = 7;
const RECORD_TIME: u16 = 8;

static SCHEMA: Schema = Schema {
    fields: &[
        Field {
            name: "source",
            id: SOURCE,
            field_type: FieldType::Text,
        },
        Field {
            name: "kind",
            id: KIND,
            field_type: FieldType::Enum(&[
                ("UNSPECIFIED", 0),
                ("CREATED", 1),
                ("INSTALLED", 2),
                ("UNINSTALLED", 3),
                ("REMOVED", 3),
            ]),
        },
        Field {
            name: "count",
            id: COUNT,
            field_type: FieldType::Integer,
        },
        Field {
            name: "effect.changed",
            id: CHANGED,
            field_type: FieldType::Boolean,
        },
        Field {
            name: "occur_time",
            id: OCCUR_TIME,
            field_type: FieldType::Time,
        },
        Field {
            name: "tags",
            id: TAGS,
            field_type: FieldType::TextSet,
        },
        Field {
            name: "attributes",
            id: ATTRIBUTES,
            field_type: FieldType::TextMap,
        },
        Field {
            name: "record_time",
            id: RECORD_TIME,
            field_type: FieldType::Time,
        },
    ],
};

/// A record whose every field may be absent.
#[derive(Clone, Debug, Default)]
struct Sample {
    source: Option<String>,
    kind: Option<i32>,
    count: Option<i64>,
    changed: Option<bool>,
    occur_time: Option<Timestamp>,
    tags: BTreeSet<String>,
    attributes: BTreeMap<String, String>,
}

impl Record for Sample {
    fn value(&self, field: u16) -> Value<'_> {
        match field {
            SOURCE => self.source.as_deref().into(),
            KIND => self.kind.map_or(Value::Absent, Value::Enum),
            COUNT => self.count.into(),
            CHANGED => self.changed.into(),
            OCCUR_TIME => self.occur_time.into(),
            _ => Value::Absent,
        }
    }

    fn map_value(&self, field: u16, key: &str) -> Option<&str> {
        assert_eq!(field, ATTRIBUTES, "only the map is asked for entries");
        self.attributes.get(key).map(String::as_str)
    }

    fn set_any(&self, field: u16, predicate: &mut dyn FnMut(&str) -> bool) -> bool {
        match field {
            TAGS => self.tags.iter().any(|tag| predicate(tag)),
            ATTRIBUTES => self.attributes.keys().any(|key| predicate(key)),
            other => panic!("field {other} is neither set nor map"),
        }
    }
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// A record with a value everywhere.
fn full() -> Sample {
    Sample {
        source: Some("acme".to_owned()),
        kind: Some(2),
        count: Some(7),
        changed: Some(true),
        occur_time: Some(time("2031-05-17T08:30:00.25Z")),
        tags: ["gold", "beta"].map(str::to_owned).into(),
        attributes: [("tier", "silver"), ("a.b", "dotted"), ("", "nameless")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
    }
}

#[track_caller]
fn parsed(text: &str) -> Filter {
    Filter::parse(text, &SCHEMA).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[track_caller]
fn refused(text: &str) -> FilterError {
    match Filter::parse(text, &SCHEMA) {
        Err(error) => error,
        Ok(filter) => panic!("{text} was taken as {filter}"),
    }
}
