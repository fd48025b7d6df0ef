use super::{ATTRIBUTES, COUNT, OCCUR_TIME, RECORD_TIME, SOURCE, Sample, full, parsed, time};

/// Each row: the filter, and whether the full and the empty record match.
#[test]
fn conditions_match_values_and_absent_values() {
    for (text, on_full, on_empty) in [
        ("", true, true),
        ("source = acme", true, false),
        ("source = Acme", false, false),
        ("source != acme", false, true),
        ("source != other", true, true),
        ("NOT source = acme", false, true),
        ("source:cm", true, false),
        ("source:CM", false, false),
        ("source:''", true, false),
        ("source:'*'", false, false),
        ("source:*", true, false),
        ("-source:*", false, true),
        ("kind = INSTALLED", true, false),
        ("kind = CREATED", false, false),
        ("kind != INSTALLED", false, true),
        ("kind != CREATED", true, true),
        ("kind:*", true, false),
        ("count = 7", true, false),
        ("count != 7", false, true),
        ("count < 7", false, false),
        ("count <= 7", true, false),
        ("count > 7", false, false),
        ("count >= 7", true, false),
        ("count > -1", true, false),
        ("NOT count > 7", true, true),
        ("NOT count > 7 AND count:*", true, false),
        ("effect.changed = true", true, false),
        ("effect.changed = false", false, false),
        ("effect.changed != true", false, true),
        ("effect.changed:*", true, false),
        ("occur_time = '2031-05-17T10:30:00.250+02:00'", true, false),
        ("occur_time != '2031-05-17T08:30:00.25Z'", false, true),
        ("occur_time > '2031-05-17T08:30:00Z'", true, false),
        ("occur_time <= '2031-05-17T08:30:00Z'", false, false),
        ("occur_time:*", true, false),
        ("tags:gold", true, false),
        ("tags:gol", false, false),
        ("tags:*", true, false),
        ("-tags:gold", false, true),
        ("attributes:*", true, false),
        ("attributes:tier", true, false),
        ("attributes:silver", false, false),
        ("attributes:'a.b'", true, false),
        ("attributes:''", true, false),
        ("attributes.tier = silver", true, false),
        ("attributes.tier != silver", false, true),
        ("attributes.tier:ilve", true, false),
        ("attributes.tier:*", true, false),
        ("attributes.none != silver", true, true),
        ("attributes.none = silver", false, false),
        ("attributes.'a.b' = dotted", true, false),
    ] {
        let filter = parsed(text);
        assert_eq!(
            filter.matches(&full()),
            on_full,
            "{text} on the full record"
        );
        assert_eq!(
            filter.matches(&Sample::default()),
            on_empty,
            "{text} on the empty record"
        );
    }
}

#[test]
fn or_binds_tighter_than_and() {
    let truths = |text: &str| {
        // The bits of the count stand for three independent conditions.
        let text = text
            .replace('a', "tags:a")
            .replace('b', "tags:b")
            .replace('c', "tags:c");
        let filter = parsed(&text);
        (0..8_u8)
            .map(|bits| {
                let mut record = Sample::default();
                for (bit, tag) in ["a", "b", "c"].into_iter().enumerate() {
                    if bits & (1 << bit) != 0 {
                        record.tags.insert(tag.to_owned());
                    }
                }
                filter.matches(&record)
            })
            .collect::<Vec<_>>()
    };
    for (short, meant) in [
        ("a AND b OR c", "a AND (b OR c)"),
        ("a OR b AND c", "(a OR b) AND c"),
        ("NOT a OR b", "(NOT a) OR b"),
        ("NOT a AND b", "(NOT a) AND b"),
        ("-a OR b AND -c", "((-a) OR b) AND (-c)"),
    ] {
        assert_eq!(truths(short), truths(meant), "{short} means {meant}");
    }
    assert_ne!(truths("a AND b OR c"), truths("(a AND b) OR c"));
    assert_ne!(truths("NOT a AND b"), truths("NOT (a AND b)"));
}

#[test]
fn filters_match_records_behind_a_reference() {
    let record = full();
    let record: &dyn super::Record = &record;
    assert!(parsed("source = acme").matches(record));
}

#[test]
fn required_text_comes_only_from_top_level_equality() {
    for (text, expected) in [
        ("source = acme", Some("acme")),
        ("(source = acme)", Some("acme")),
        ("count = 1 AND (source = acme AND tags:*)", Some("acme")),
        ("source = acme AND source = other", Some("acme")),
        ("count = 1 OR source = acme", None),
        ("source = acme OR source = other", None),
        ("count = 1 AND source = acme OR source = other", None),
        ("NOT source = acme", None),
        ("source != acme", None),
        ("source:acme", None),
        ("source:*", None),
        ("attributes.source = acme", None),
        ("", None),
    ] {
        assert_eq!(parsed(text).required_text(SOURCE), expected, "{text}");
    }
    assert_eq!(
        parsed("attributes.tier = gold").required_text(ATTRIBUTES),
        None
    );
    assert_eq!(parsed("count = 1").required_text(COUNT), None);
}

#[test]
fn required_time_range_is_the_inclusive_intersection() {
    let (early, late) = ("2031-05-17T08:30:00Z", "2031-05-18T08:30:00Z");
    for (text, expected) in [
        ("occur_time > 'E'", (Some(early), None)),
        ("occur_time >= 'E' AND occur_time > 'L'", (Some(late), None)),
        (
            "occur_time < 'E' AND occur_time <= 'L'",
            (None, Some(early)),
        ),
        ("occur_time = 'E'", (Some(early), Some(early))),
        (
            "source = x AND (occur_time >= 'E' AND occur_time < 'L')",
            (Some(early), Some(late)),
        ),
        (
            "occur_time > 'L' AND occur_time < 'E'",
            (Some(late), Some(early)),
        ),
        ("occur_time != 'E'", (None, None)),
        ("occur_time > 'E' OR count = 1", (None, None)),
        ("NOT occur_time > 'E'", (None, None)),
        ("", (None, None)),
    ] {
        let filter = parsed(&text.replace('E', early).replace('L', late));
        let (earliest, latest) = expected;
        let expected = (earliest.map(time), latest.map(time));
        assert_eq!(filter.required_time_range(OCCUR_TIME), expected, "{text}");
        assert_eq!(
            filter.required_time_range(RECORD_TIME),
            (None, None),
            "{text}"
        );
    }
}
