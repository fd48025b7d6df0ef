use super::*;

fn hash(token: &str) -> String {
    digest(token.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn principal(name: &str, credentials: &str, rest: &str) -> String {
    format!("[[principals]]\nname = \"{name}\"\n{credentials}\n{rest}\n")
}

fn read(text: &str) -> Result<Principals, Faults> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Principals::read(file.path())
}

const SEES_ACME: &str = "scopes = [\"read\"]\nsources = [\"acme\"]\norganizations = []";

fn two() -> Principals {
    let credentials = format!(
        "token_sha256 = [\"{}\", \"{}\"]\nclient_names = [\"Reader.test\", \"spiffe://T/reader\"]",
        hash("old"),
        hash("new").to_uppercase()
    );
    let reader = principal("reader", &credentials, SEES_ACME);
    let other = principal(
        "other",
        &format!(
            "token_sha256 = [\"{}\"]\nclient_names = [\"other.test\"]",
            hash("third")
        ),
        "scopes = [\"ingest\", \"read:personal\"]\nsources = [\"*\"]\norganizations = []",
    );
    read(&(reader + &other)).unwrap_or_else(|faults| panic!("{faults}"))
}

#[test]
fn a_token_names_its_principal_while_its_hash_is_listed() {
    let principals = two();
    let by = |token: &str| principals.by_token(Some(token.as_bytes()));
    for (token, name) in [("old", "reader"), ("new", "reader"), ("third", "other")] {
        assert_eq!(by(token).unwrap().name(), name);
    }
    for wrong in ["olD", "old ", "", &hash("old")] {
        assert_eq!(by(wrong).unwrap_err(), Cause::Token, "{wrong}");
    }
    assert_eq!(principals.by_token(None).unwrap_err(), Cause::Malformed);
    let reader = by("old").unwrap();
    assert!(reader.holds(Scope::Read) && !reader.holds(Scope::ReadPersonal));
    assert!(!reader.holds(Scope::Unspecified));
    let expected = store::Scope::limited([SourceUid::new("acme").unwrap()], []);
    assert_eq!(*reader.scope(), expected);
    assert_eq!(*by("third").unwrap().scope(), store::Scope::everything());
}

#[test]
fn a_certificate_names_its_principal_unless_it_names_two() {
    let principals = two();
    let by = |names: &[&'static str]| {
        let caller = principals.by_names(&names.iter().copied().collect());
        caller.map(|caller| caller.name().to_owned())
    };
    for names in [
        &["reader.test"][..],
        &["spiffe://T/reader"],
        &["unknown.test", "reader.test", "spiffe://T/reader"],
    ] {
        assert_eq!(by(names).as_deref(), Ok("reader"), "{names:?}");
    }
    let none = principals.by_names(&PeerNames::default());
    assert_eq!(none.unwrap_err(), Cause::Missing);
    for names in [
        &[][..],
        &["unknown.test"],
        &["spiffe://t/reader"],
        &["x.reader.test"],
        &["reader.test", "other.test"],
    ] {
        assert_eq!(by(names), Err(Cause::Certificate), "{names:?}");
    }
}

#[test]
fn who_did_not_change_stays_and_all_others_are_told() {
    let older = two();
    let [reader, other] =
        ["old", "third"].map(|token| older.by_token(Some(token.as_bytes())).unwrap());
    let rotated = principal(
        "reader",
        &format!("token_sha256 = [\"{}\"]", hash("new")),
        SEES_ACME,
    );
    let same = principal(
        "other",
        &format!(
            "token_sha256 = [\"{}\"]\nclient_names = [\"other.test\"]",
            hash("third")
        ),
        "scopes = [\"ingest\", \"read:personal\"]\nsources = [\"*\"]\norganizations = []",
    );
    let newer = read(&(same + &rotated)).unwrap().succeeding(&older);
    assert!(reader.changed().is_cancelled() && !other.changed().is_cancelled());
    assert!(newer.by_token(Some(b"old")).is_err());
    let still = newer.by_token(Some(b"third")).unwrap();
    assert!(Arc::ptr_eq(&still.0, &other.0));
    let fresh = newer.by_token(Some(b"new")).unwrap();
    assert!(!fresh.changed().is_cancelled());
    let gone = read(&principal("x", "client_names = [\"x\"]", SEES_ACME)).unwrap();
    let _ = gone.succeeding(&newer);
    assert!(still.changed().is_cancelled() && fresh.changed().is_cancelled());
}

#[test]
fn every_fault_names_the_principal_and_the_field_and_no_secret() {
    let good = format!("token_sha256 = [\"{}\"]", hash("a"));
    let cases = [
        ("", "principals ("),
        (&principal("a b", &good, SEES_ACME), "principals[0].name "),
        (
            &(principal("a", &good, SEES_ACME)
                + &principal("a", "client_names = [\"x\"]", SEES_ACME)),
            "principals[1].name ",
        ),
        (
            &(principal("a", &good, SEES_ACME) + &principal("b", &good, SEES_ACME)),
            "principals[1].token_sha256[0] ",
        ),
        (
            &principal("a", "", SEES_ACME),
            "principals[0].token_sha256 ",
        ),
        (
            &principal("a", "token_sha256 = [\"plt_marker\"]", SEES_ACME),
            "principals[0].token_sha256[0] ",
        ),
        (
            &principal("a", "client_names = [\"x\", \"X\"]", SEES_ACME),
            "principals[0].client_names[1] ",
        ),
        (
            &principal("a", "client_names = [\"x y\"]", SEES_ACME),
            "principals[0].client_names[0] ",
        ),
        (
            &principal(
                "a",
                &good,
                "scopes = [\"reed\"]\nsources = [\"*\"]\norganizations = []",
            ),
            "principals[0].scopes[0] ",
        ),
        (
            &principal(
                "a",
                &good,
                "scopes = []\nsources = [\"*\"]\norganizations = []",
            ),
            "principals[0].scopes ",
        ),
        (
            &principal(
                "a",
                &good,
                "scopes = [\"read\"]\nsources = []\norganizations = []",
            ),
            "principals[0].sources ",
        ),
        (
            &principal(
                "a",
                &good,
                "scopes = [\"read\"]\nsources = [\"*\", \"acme\"]\norganizations = []",
            ),
            "principals[0].sources ",
        ),
        (
            &principal(
                "a",
                &good,
                "scopes = [\"read\"]\nsources = [\"a/b\"]\norganizations = []",
            ),
            "principals[0].sources[0] ",
        ),
        (
            &principal(
                "a",
                &good,
                "scopes = [\"read\"]\nsources = []\norganizations = [\"*\"]",
            ),
            "principals[0].organizations[0] ",
        ),
        (
            &principal(
                "a",
                &good,
                "scopes = [\"ingest\"]\nsources = []\norganizations = [\"north\"]",
            ),
            "principals[0].sources ",
        ),
        (
            &principal("a", &good, "scopes = [\"read\"]\norganizations = []"),
            "principals[0].sources ",
        ),
        (
            &principal("a", &good, "scopes = [\"read\"]\nsources = [\"*\"]"),
            "principals[0].organizations ",
        ),
        (
            &principal("a", &good, &format!("{SEES_ACME}\ntoken = \"plt_marker\"")),
            "principals[0].token ",
        ),
    ];
    for (text, start) in cases {
        let faults = read(text).expect_err(text).to_string();
        assert!(faults.starts_with(start), "{text}\n{faults}");
        assert!(!faults.contains("plt_marker"), "{faults}");
    }
    let named = read(&principal("a", "", SEES_ACME))
        .unwrap_err()
        .to_string();
    assert!(named.contains("principal a: "), "{named}");
}

#[test]
fn the_example_is_valid() {
    const EXAMPLE: &str = include_str!("../../../principals.example.toml");
    let principals = read(EXAMPLE).unwrap_or_else(|faults| panic!("{faults}"));
    let held: HashSet<&str> = (principals.list.iter())
        .flat_map(|principal| principal.scopes.iter().map(|scope| scope_name(*scope)))
        .collect();
    assert_eq!(held.len(), SCOPES.len(), "it shows every scope");
    for key in ["token_sha256", "client_names", "sources", "organizations"] {
        assert!(EXAMPLE.contains(&format!("\n{key} = ")), "{key}");
    }
}
