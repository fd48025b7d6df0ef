//! Generated filters, held against a model that shares no code with the
//! parser or the evaluation: it is evaluated by hand and spelled at random.

use std::cmp::Ordering;

use jiff::Timestamp;
use proptest::prelude::*;
use proptest::sample::select;

use super::{Filter, SCHEMA, Sample};

/// A filter as its author thinks of it.
#[derive(Clone, Debug)]
enum Model {
    All(Vec<Model>),
    Any(Vec<Model>),
    Not(Box<Model>),
    Condition(Condition),
}

#[derive(Clone, Debug)]
enum Condition {
    Present(&'static str),
    Source(&'static str, String),
    Kind(&'static str, &'static str),
    Count(&'static str, i64),
    Changed(&'static str, bool),
    OccurTime(&'static str, i64),
    HasTag(String),
    HasKey(String),
    Entry(String, &'static str, String),
}

/// Picks one of several spellings; repeats its choices when they run out.
struct Spelling {
    choices: Vec<u8>,
    next: usize,
}

impl Spelling {
    fn choose<'a>(&mut self, spellings: &[&'a str]) -> &'a str {
        self.next = (self.next + 1) % self.choices.len();
        spellings[usize::from(self.choices[self.next]) % spellings.len()]
    }

    fn quoted(&mut self, text: &str) -> String {
        let quote = self.choose(&["\"", "'"]);
        let mut quoted = quote.to_owned();
        for character in text.chars() {
            match character {
                '\\' | '"' | '\'' => quoted.extend(['\\', character]),
                'é' => quoted.push_str(self.choose(&["é", "\\u00e9", "\\u00E9"])),
                '\n' => quoted.push_str(self.choose(&["\\n", "\n", "\\u000a"])),
                plain => quoted.push(plain),
            }
        }
        quoted + quote
    }

    fn text(&mut self, text: &str) -> String {
        let is_word = !text.is_empty()
            && text != "AND"
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if is_word && self.choose(&["word", "quoted"]) == "word" {
            text.to_owned()
        } else {
            self.quoted(text)
        }
    }

    fn space(&mut self) -> &'static str {
        self.choose(&["", " ", "  ", "\t"])
    }

    fn compared(&mut self, field: &str, sign: &str, value: &str) -> String {
        format!("{field}{}{sign}{}{value}", self.space(), self.space())
    }

    fn condition(&mut self, condition: &Condition) -> String {
        match condition {
            Condition::Present(field) => self.compared(field, ":", "*"),
            Condition::Source(sign, text) => {
                let text = self.text(text);
                self.compared("source", sign, &text)
            }
            Condition::Kind(sign, name) => {
                let name = self.text(name);
                self.compared("kind", sign, &name)
            }
            Condition::Count(sign, count) => self.compared("count", sign, &count.to_string()),
            Condition::Changed(sign, changed) => {
                self.compared("effect.changed", sign, &changed.to_string())
            }
            Condition::OccurTime(sign, second) => {
                let zone = self.choose(&["Z", "+00:00", "-00:00", ".000Z"]);
                let time = self.quoted(&format!("1970-01-01T00:00:{second:02}{zone}"));
                self.compared("occur_time", sign, &time)
            }
            Condition::HasTag(tag) => {
                let tag = self.text(tag);
                self.compared("tags", ":", &tag)
            }
            Condition::HasKey(key) => {
                let key = self.text(key);
                if self.choose(&["map", "entry"]) == "map" {
                    self.compared("attributes", ":", &key)
                } else {
                    self.compared(&format!("attributes.{key}"), ":", "*")
                }
            }
            Condition::Entry(key, sign, text) => {
                let (key, text) = (self.text(key), self.text(text));
                self.compared(&format!("attributes.{key}"), sign, &text)
            }
        }
    }

    /// Writes parentheses where the precedence needs them, and sometimes more.
    fn filter(&mut self, model: &Model) -> String {
        let joined = |spelling: &mut Self, parts: &[Model], keyword: &str| {
            let parts: Vec<String> = parts
                .iter()
                .map(|part| {
                    let text = spelling.filter(part);
                    let is_needed = keyword == "OR" && matches!(part, Model::All(_));
                    if is_needed || spelling.choose(&["plain", "wrapped", "plain"]) == "wrapped" {
                        format!("({}{text}{})", spelling.space(), spelling.space())
                    } else {
                        text
                    }
                })
                .collect();
            let before = spelling.choose(&[" ", "\n", "  "]);
            parts.join(&format!("{before}{keyword}{before}"))
        };
        match model {
            Model::All(parts) => joined(self, parts, "AND"),
            Model::Any(parts) => joined(self, parts, "OR"),
            Model::Not(inner) => {
                let text = self.filter(inner);
                let not = self.choose(&["NOT ", "-", "NOT\t"]);
                if matches!(**inner, Model::Condition(_)) {
                    format!("{not}{text}")
                } else {
                    format!("{not}({text})")
                }
            }
            Model::Condition(condition) => self.condition(condition),
        }
    }
}

fn is_matched(model: &Model, record: &Sample) -> bool {
    match model {
        Model::All(parts) => !parts.iter().any(|part| !is_matched(part, record)),
        Model::Any(parts) => parts.iter().filter(|part| is_matched(part, record)).count() > 0,
        Model::Not(inner) => !is_matched(inner, record),
        Model::Condition(condition) => is_met(condition, record),
    }
}

fn is_met(condition: &Condition, record: &Sample) -> bool {
    let text_is_met = |sign: &str, value: Option<&String>, text: &String| match sign {
        "=" => value == Some(text),
        "!=" => value != Some(text),
        ":" => value.is_some_and(|value| value.contains(text.as_str())),
        other => unreachable!("{other} isn't generated for texts"),
    };
    let order_is_met = |sign: &str, ordering: Option<Ordering>| match sign {
        "=" => ordering == Some(Ordering::Equal),
        "!=" => ordering != Some(Ordering::Equal),
        "<" => ordering == Some(Ordering::Less),
        ">" => ordering == Some(Ordering::Greater),
        "<=" => ordering.is_some() && ordering != Some(Ordering::Greater),
        ">=" => ordering.is_some() && ordering != Some(Ordering::Less),
        other => unreachable!("{other} is no order"),
    };
    match condition {
        Condition::Present("source") => record.source.is_some(),
        Condition::Present("kind") => record.kind.is_some(),
        Condition::Present("count") => record.count.is_some(),
        Condition::Present("effect.changed") => record.changed.is_some(),
        Condition::Present("occur_time") => record.occur_time.is_some(),
        Condition::Present("tags") => !record.tags.is_empty(),
        Condition::Present("attributes") => !record.attributes.is_empty(),
        Condition::Present(other) => unreachable!("{other} isn't generated"),
        Condition::Source(sign, text) => text_is_met(sign, record.source.as_ref(), text),
        Condition::Kind(sign, name) => {
            let number = match *name {
                "CREATED" => 1,
                "INSTALLED" => 2,
                _ => 3,
            };
            (record.kind == Some(number)) == (*sign == "=")
        }
        Condition::Count(sign, count) => {
            order_is_met(sign, record.count.map(|value| value.cmp(count)))
        }
        Condition::Changed(sign, changed) => (record.changed == Some(*changed)) == (*sign == "="),
        Condition::OccurTime(sign, second) => order_is_met(
            sign,
            record.occur_time.map(|time| time.as_second().cmp(second)),
        ),
        Condition::HasTag(tag) => record.tags.contains(tag),
        Condition::HasKey(key) => record.attributes.contains_key(key),
        Condition::Entry(key, sign, text) => text_is_met(sign, record.attributes.get(key), text),
    }
}

/// Few texts, so that they often meet; awkward ones among them.
fn texts() -> impl Strategy<Value = String> {
    select(&[
        "a",
        "ab",
        "b",
        "",
        "x y",
        "é\n",
        "\"\\'",
        "AND",
        "*",
        "\u{1}🦀",
    ])
    .prop_map(str::to_owned)
}

fn conditions() -> impl Strategy<Value = Condition> {
    let order = || select(&["=", "!=", "<", ">", "<=", ">="]);
    let equality = || select(&["=", "!="]);
    let text_sign = || select(&["=", "!=", ":"]);
    let fields = select(&[
        "source",
        "kind",
        "count",
        "effect.changed",
        "occur_time",
        "tags",
        "attributes",
    ]);
    let kinds = select(&["CREATED", "INSTALLED", "UNINSTALLED", "REMOVED"]);
    prop_oneof![
        fields.prop_map(Condition::Present),
        (text_sign(), texts()).prop_map(|(sign, text)| Condition::Source(sign, text)),
        (equality(), kinds).prop_map(|(sign, name)| Condition::Kind(sign, name)),
        (order(), -3..4_i64).prop_map(|(sign, count)| Condition::Count(sign, count)),
        (equality(), any::<bool>()).prop_map(|(sign, changed)| Condition::Changed(sign, changed)),
        (order(), 0..4_i64).prop_map(|(sign, second)| Condition::OccurTime(sign, second)),
        texts().prop_map(Condition::HasTag),
        texts().prop_map(Condition::HasKey),
        (texts(), text_sign(), texts())
            .prop_map(|(key, sign, text)| Condition::Entry(key, sign, text)),
    ]
}

fn models() -> impl Strategy<Value = Model> {
    conditions()
        .prop_map(Model::Condition)
        .prop_recursive(5, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 1..4).prop_map(Model::All),
                prop::collection::vec(inner.clone(), 1..4).prop_map(Model::Any),
                inner.prop_map(|inner| Model::Not(Box::new(inner))),
            ]
        })
}

fn spellings() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 1..40)
}

fn records() -> impl Strategy<Value = Sample> {
    (
        prop::option::of(texts()),
        prop::option::of(1..4_i32),
        prop::option::of(-3..4_i64),
        prop::option::of(any::<bool>()),
        prop::option::of(0..4_i64),
        prop::collection::btree_set(texts(), 0..3),
        prop::collection::btree_map(texts(), texts(), 0..3),
    )
        .prop_map(
            |(source, kind, count, changed, second, tags, attributes)| Sample {
                source,
                kind,
                count,
                changed,
                occur_time: second.map(|second| Timestamp::from_second(second).unwrap()),
                tags,
                attributes,
            },
        )
}

fn spelled(model: &Model, choices: Vec<u8>) -> String {
    Spelling { choices, next: 0 }.filter(model)
}

/// Pieces of the language, in an order that means nothing.
fn rubble() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => select(&[
            "source", "kind", "count", "effect.changed", "occur_time", "tags", "attributes", ".",
            "=", "!=", "<", "<=", ">", ">=", ":", "*", "(", ")", "-", "AND", "OR", "NOT", " ", " ",
            "\"", "'", "\\", "\\u12", "\\u00e9", "'2031-05-17T08:30:00Z'", "INSTALLED", "true",
            "12", "\"x\"", "é", "\n",
        ])
        .prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused_within_its_bounds(text in rubble()) {
        match Filter::parse(&text, &SCHEMA) {
            Ok(filter) => {
                let is_matched = filter.matches(&Sample::default());
                let again = Filter::parse(&filter.to_string(), &SCHEMA);
                prop_assert_eq!(again.as_ref().map(|again| again.matches(&Sample::default())), Ok(is_matched));
                prop_assert_eq!(again, Ok(filter));
            }
            Err(error) => {
                prop_assert!(text.is_char_boundary(error.offset), "offset {}", error.offset);
                prop_assert_eq!(text[..error.offset].chars().count() + 1, error.column);
                prop_assert!(error.message.len() < 800);
            }
        }
    }

    #[test]
    fn a_broken_filter_is_refused_or_still_means_something(
        model in models(),
        choices in spellings(),
        at in any::<prop::sample::Index>(),
        replacement in rubble(),
    ) {
        let mut characters: Vec<char> = spelled(&model, choices).chars().collect();
        let at = at.index(characters.len());
        characters.splice(at..=at, replacement.chars().take(4));
        let text: String = characters.into_iter().collect();
        if let Ok(filter) = Filter::parse(&text, &SCHEMA) {
            prop_assert_eq!(Filter::parse(&filter.to_string(), &SCHEMA), Ok(filter));
        }
    }

    #[test]
    fn canonical_text_parses_to_an_equal_filter(model in models(), choices in spellings()) {
        let text = spelled(&model, choices);
        let filter = Filter::parse(&text, &SCHEMA).unwrap_or_else(|error| panic!("{text}: {error}"));
        let canonical = filter.to_string();
        prop_assert_eq!(Filter::parse(&canonical, &SCHEMA), Ok(filter));
    }

    #[test]
    fn spelling_changes_nothing(model in models(), one in spellings(), other in spellings()) {
        let (one, other) = (spelled(&model, one), spelled(&model, other));
        let (one, other) = (Filter::parse(&one, &SCHEMA), Filter::parse(&other, &SCHEMA));
        prop_assert!(one.is_ok());
        prop_assert_eq!(one, other);
    }

    #[test]
    fn evaluation_agrees_with_the_model(
        model in models(),
        choices in spellings(),
        records in prop::collection::vec(records(), 8),
    ) {
        let text = spelled(&model, choices);
        let filter = Filter::parse(&text, &SCHEMA).unwrap_or_else(|error| panic!("{text}: {error}"));
        for record in records {
            prop_assert_eq!(
                filter.matches(&record), is_matched(&model, &record), "{} on {:?}", text, record
            );
        }
    }

    #[test]
    fn required_values_exclude_no_matching_record(
        model in models(),
        records in prop::collection::vec(records(), 8),
    ) {
        let text = spelled(&model, vec![0]);
        let filter = Filter::parse(&text, &SCHEMA).unwrap_or_else(|error| panic!("{text}: {error}"));
        for record in records.iter().filter(|record| is_matched(&model, record)) {
            if let Some(source) = filter.required_text(super::SOURCE) {
                prop_assert_eq!(record.source.as_deref(), Some(source), "{}", text);
            }
            let (earliest, latest) = filter.required_time_range(super::OCCUR_TIME);
            prop_assert!(earliest.is_none_or(|earliest| record.occur_time >= Some(earliest)));
            let is_too_late = latest.is_some_and(|latest| record.occur_time > Some(latest));
            prop_assert!(!is_too_late && (latest.is_none() || record.occur_time.is_some()));
        }
    }
}
