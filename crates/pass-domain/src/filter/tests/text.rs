use super::super::{DEPTH_MAX, TERMS_MAX, TEXT_BYTES_MAX};
use super::{Filter, parsed, refused};

#[test]
fn canonical_text_is_the_same_for_every_spelling() {
    for (written, canonical) in [
        ("", ""),
        (" \t\r\n ", ""),
        ("source=acme", "source = \"acme\""),
        ("  source  =  'acme'  ", "source = \"acme\""),
        ("source = acme-prod.eu_1", "source = \"acme-prod.eu_1\""),
        ("source:\"*\"", "source:\"*\""),
        ("source : *", "source:*"),
        ("source = \"\"", "source = \"\""),
        (r#"source = 'a"b\'c'"#, r#"source = "a\"b'c""#),
        (
            r#"source = "\\ \n \t \u00e9 \u0007""#,
            r#"source = "\\ \n \t é \u0007""#,
        ),
        ("source = \"snow ☃ and 🦀\"", "source = \"snow ☃ and 🦀\""),
        ("kind=INSTALLED", "kind = INSTALLED"),
        ("kind != 'CREATED'", "kind != CREATED"),
        ("kind = REMOVED", "kind = UNINSTALLED"),
        ("count >= -007", "count >= -7"),
        ("count=-9223372036854775808", "count = -9223372036854775808"),
        ("effect.changed = true", "effect.changed = true"),
        (
            "occur_time < '2031-05-17t10:30:00.250+02:00'",
            "occur_time < \"2031-05-17T08:30:00.25Z\"",
        ),
        ("tags:gold", "tags:\"gold\""),
        ("tags:*", "tags:*"),
        ("attributes:*", "attributes:*"),
        ("attributes:tier", "attributes:\"tier\""),
        ("attributes.tier:*", "attributes:\"tier\""),
        (
            "attributes.tier = silver",
            "attributes.\"tier\" = \"silver\"",
        ),
        ("attributes.'a.b' != x", "attributes.\"a.b\" != \"x\""),
        ("attributes.\"\":x", "attributes.\"\":\"x\""),
        ("((count = 1))", "count = 1"),
        ("-count = 1", "NOT count = 1"),
        ("-(count = 1)", "NOT count = 1"),
        ("NOT (NOT count = 1)", "count = 1"),
        ("NOT\tcount = 1", "NOT count = 1"),
        (
            "-(count = 1 AND count = 2)",
            "NOT (count = 1 AND count = 2)",
        ),
        ("-(count = 1 OR count = 2)", "NOT (count = 1 OR count = 2)"),
        (
            "(count = 1 AND count = 2) AND count = 3",
            "count = 1 AND count = 2 AND count = 3",
        ),
        (
            "count = 1 OR (count = 2 OR count = 3)",
            "count = 1 OR count = 2 OR count = 3",
        ),
        (
            "count = 1 AND (count = 2 OR count = 3)",
            "count = 1 AND count = 2 OR count = 3",
        ),
        (
            "(count = 1 AND count = 2) OR count = 3",
            "(count = 1 AND count = 2) OR count = 3",
        ),
        ("count = 1\nAND\ncount = 2", "count = 1 AND count = 2"),
    ] {
        let filter = parsed(written);
        assert_eq!(filter.to_string(), canonical, "canonical text of {written}");
        assert_eq!(
            parsed(canonical),
            filter,
            "{canonical} is the same filter as {written}"
        );
    }
}

#[test]
fn debug_output_is_the_canonical_text() {
    assert_eq!(format!("{:?}", parsed("count=1")), "Filter(count = 1)");
}

#[test]
fn filters_that_differ_are_not_equal() {
    assert_ne!(parsed("count = 1"), parsed("count = 2"));
    assert_ne!(parsed("occur_time:*"), parsed("record_time:*"));
    assert_ne!(
        parsed("count = 1 AND count = 2"),
        parsed("count = 1 OR count = 2")
    );
    assert_ne!(parsed("attributes.a = x"), parsed("attributes.b = x"));
    assert_eq!(parsed(" "), Filter::default());
    assert!(parsed(" ").is_empty());
    assert!(!parsed("tags:*").is_empty());
}

/// Each row: the text, the byte offset and a part of the message.
#[test]
fn refusals_point_at_the_fault_and_name_the_fix() {
    for (text, offset, part) in [
        // Structure.
        ("count = 1 AND", 13, "missing at the end"),
        ("count = 1 AND ", 14, "missing at the end"),
        ("NOT", 3, "missing at the end"),
        ("-", 1, "missing at the end"),
        ("(", 1, "missing at the end"),
        ("()", 1, "missing before )"),
        ("AND count = 1", 0, "missing before AND"),
        ("count = 1 AND OR count = 2", 14, "missing before OR"),
        ("count = 1)", 9, "no parenthesis is open"),
        ("count = 1 AND (count = 2", 14, "never closed"),
        ("count = 1 count = 2", 10, "write AND or OR"),
        ("(count = 1 count = 2)", 11, "write AND or OR"),
        ("source = John Smith", 14, "quotes around text with spaces"),
        ("count = 1 and count = 2", 10, "write AND in capitals"),
        ("count = 1 Or count = 2", 10, "write OR in capitals"),
        ("count = 1 NOT count = 2", 10, "before this negation"),
        ("count = 1 && count = 2", 10, "write AND or OR"),
        ("count = 1&&count = 2", 9, "write AND or OR"),
        ("count = 1 AND(count = 2)", 13, "space after AND"),
        ("NOT(count = 1)", 3, "space after NOT"),
        ("(count = 1)AND count = 2", 11, "unexpected \"A\""),
        ("NOT NOT count = 1", 4, "not two"),
        ("-NOT count = 1", 1, "not two"),
        ("--count = 1", 1, "not two"),
        ("- count = 1", 1, "without space"),
        ("!count = 1", 0, "write NOT"),
        ("count = 1 , count = 2", 10, "write AND or OR"),
        // Fields.
        ("\"acme\"", 0, "begins with a field name"),
        ("* = 1", 0, "unexpected \"*\""),
        ("\u{0} = 1", 0, "unexpected \"\\0\""),
        (
            "knd = INSTALLED",
            0,
            "unknown field \"knd\"; known fields: kind, ",
        ),
        ("effect = true", 0, "unknown field \"effect\""),
        ("changed = true", 0, "known fields: effect.changed, "),
        ("SOURCE = acme", 0, "known fields: source, "),
        ("count = 1 AND sorce = x", 14, "known fields: source, "),
        (
            "source.name = acme",
            6,
            "nothing inside, as it is of type text",
        ),
        ("source.'name' = acme", 6, "nothing inside"),
        (
            "effect.changed.x = true",
            14,
            "nothing inside, as it is of type boolean",
        ),
        ("attributes.a.b = x", 11, "quote a key that has a dot"),
        ("attributes:a.b", 11, "quote a key that has a dot"),
        ("attributes. = x", 11, "missing after the dot"),
        ("attributes .x = x", 11, "an operator is missing"),
        // Operators.
        (
            "source",
            6,
            "an operator is missing after \"source\"; write one of = != <",
        ),
        ("source acme", 7, "an operator is missing"),
        ("source == acme", 7, "write ="),
        ("source <> acme", 7, "write !="),
        ("source ~ acme", 7, "an operator is missing"),
        (
            "source < acme",
            7,
            "doesn't fit source, of type text; write = or != or :",
        ),
        ("kind >= CREATED", 5, "of type enum; write = or !="),
        ("kind:CREATED", 4, "of type enum; write = or !="),
        (
            "effect.changed > false",
            15,
            "of type boolean; write = or !=",
        ),
        ("effect.changed:true", 14, "of type boolean; write = or !="),
        ("count:7", 5, "of type integer; write = != <"),
        (
            "occur_time:'2031-05-17T08:30:00Z'",
            10,
            "of type time; write = != <",
        ),
        ("tags = gold", 5, "write tags:value"),
        ("attributes = tier", 11, "write attributes.key"),
        (
            "attributes.tier > silver",
            16,
            "of type text; write = or != or :",
        ),
        // Values.
        ("source =", 8, "a value is missing"),
        ("source = )", 9, "a value is missing"),
        (
            "source = AND count = 1",
            9,
            "write \"AND\" to mean the text",
        ),
        ("source = (a OR b)", 9, "(source = a OR source = b)"),
        ("source = *", 9, "write source:*"),
        ("source = acme*", 13, "there are no patterns"),
        ("source:*x", 8, "unexpected \"x\""),
        ("source = a@b", 10, "in quotes"),
        ("source = \"a\"b", 12, "unexpected \"b\""),
        ("source = f(x)", 10, "unexpected \"(\""),
        ("source = \"acme", 9, "this quote is never closed"),
        ("source = \"acme\\", 9, "this quote is never closed"),
        ("source = 'a\\x'", 11, "unknown escape \"\\\\x\""),
        (r"source = 'a\u12'", 11, "four hexadecimal digits"),
        (r"source = 'a\u+123'", 11, "four hexadecimal digits"),
        (
            r"source = 'a\ud83e\udd80'",
            11,
            "write characters above U+FFFF as they are",
        ),
        (
            "kind = INSTALED",
            7,
            "unknown value \"INSTALED\" of kind; known values: INSTALLED, UNIN",
        ),
        ("kind = installed", 7, "known values: INSTALLED, "),
        ("kind = PASS_KIND_CREATED", 7, "known values: CREATED, "),
        ("kind = 2", 7, "unknown value \"2\" of kind"),
        (
            "kind = UNSPECIFIED",
            7,
            "unknown value \"UNSPECIFIED\" of kind",
        ),
        ("count = seven", 8, "decimal digits"),
        ("count = 1.5", 8, "decimal digits"),
        ("count = \"7\"", 8, "decimal digits, unquoted"),
        ("count = -", 8, "decimal digits"),
        ("count > 9223372036854775808", 8, "out of range"),
        ("count > -9223372036854775809", 8, "out of range"),
        ("effect.changed = yes", 17, "write true or false"),
        (
            "effect.changed = 'true'",
            17,
            "write true or false, unquoted",
        ),
        (
            "occur_time > 2031-05-17T08:30:00Z",
            13,
            "write it quoted as RFC 3339",
        ),
        ("occur_time > '2031-05-17'", 13, "RFC 3339 with an offset"),
        (
            "occur_time > '2031-05-17T08:30:00'",
            13,
            "RFC 3339 with an offset",
        ),
        (
            "occur_time > '2031-05-17T08:30Z'",
            13,
            "RFC 3339 with an offset",
        ),
        (
            "occur_time > '2031-05-17T08:30:00.Z'",
            13,
            "RFC 3339 with an offset",
        ),
        (
            "occur_time > '2031-05-17T08:30:00+02'",
            13,
            "RFC 3339 with an offset",
        ),
        (
            "occur_time > '2031-05-17T08:30:00Z[UTC]'",
            13,
            "RFC 3339 with an offset",
        ),
        (
            "occur_time > '2031-02-30T08:30:00Z'",
            13,
            "RFC 3339 with an offset",
        ),
        (
            "occur_time > '0000-01-01T00:00:00+10:00'",
            13,
            "RFC 3339 with an offset",
        ),
        (
            "occur_time > 'é031-05-17T08:30:00Z'",
            13,
            "RFC 3339 with an offset",
        ),
    ] {
        let error = refused(text);
        assert_eq!(error.offset, offset, "offset in {text}: {error}");
        assert!(error.message.contains(part), "message for {text}: {error}");
    }
}

#[test]
fn columns_count_characters_and_offsets_count_bytes() {
    let error = refused("source = \"é🦀\" AND knd = 1");
    assert_eq!((error.offset, error.column), (22, 19));
    assert_eq!(
        error.to_string(),
        "at column 19: unknown field \"knd\"; known fields: kind, count, tags, source, \
         occur_time, attributes, record_time, effect.changed"
    );
}

#[test]
fn unspecified_is_not_offered_as_a_value() {
    let error = refused("kind = NOPE");
    assert!(!error.message.contains("UNSPECIFIED"), "{error}");
}

#[test]
fn messages_stay_short_whatever_the_text() {
    for long in [
        "x".repeat(4_000),
        "é".repeat(1_000),
        "\"".to_owned() + &"\u{1}".repeat(4_000),
    ] {
        for text in [
            long.clone(),
            format!("kind = {long}"),
            format!("kind = '{long}'"),
        ] {
            let error = refused(&text);
            assert!(
                error.message.len() < 800,
                "{} bytes: {error}",
                error.message.len()
            );
        }
    }
}

#[test]
fn text_is_bounded_as_written() {
    let fitting = format!("source = \"{}\"", "x".repeat(TEXT_BYTES_MAX - 11));
    assert_eq!(fitting.len(), TEXT_BYTES_MAX);
    parsed(&fitting);
    let error = refused(&format!("{fitting} "));
    assert_eq!(error.offset, TEXT_BYTES_MAX);
    assert!(
        error
            .message
            .contains("4097 bytes, above the bound of 4096"),
        "{error}"
    );
    // The bound lies within a character.
    let error = refused(&"é🦀".repeat(700));
    assert_eq!((error.offset, error.column), (4_094, 1_366));
}

#[test]
fn text_is_bounded_in_its_canonical_form() {
    let error = refused(&format!("source = \"{}\"", "\u{1}".repeat(700)));
    assert!(
        error.message.contains("4211 bytes in its canonical form"),
        "{error}"
    );
}

#[test]
fn conditions_are_counted() {
    let conditions = |count: usize| vec!["tags:*"; count].join(" AND ");
    parsed(&conditions(TERMS_MAX));
    let error = refused(&conditions(TERMS_MAX + 1));
    assert_eq!(error.offset, TERMS_MAX * "tags:* AND ".len());
    assert!(error.message.contains("more than 64 conditions"), "{error}");
}

#[test]
fn parentheses_are_counted_by_depth_alone() {
    let nested = |depth: usize| format!("{}tags:*{}", "(".repeat(depth), ")".repeat(depth));
    parsed(&nested(DEPTH_MAX));
    let error = refused(&nested(DEPTH_MAX + 1));
    assert_eq!(error.offset, DEPTH_MAX);
    assert!(error.message.contains("deeper than 32"), "{error}");
    parsed(&vec!["(tags:*)"; TERMS_MAX].join(" OR "));
}

#[test]
fn the_deepest_filter_has_a_canonical_text_that_parses() {
    for sign in ["", "-"] {
        let mut text = "tags:*".to_owned();
        for _ in 0..DEPTH_MAX - 1 {
            text = format!("{sign}(count = 1 AND {text} OR tags:x)");
        }
        let filter = parsed(&format!("({text})"));
        assert_eq!(parsed(&filter.to_string()), filter);
    }
}
