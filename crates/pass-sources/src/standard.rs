//! Passline's own event format, for senders that are none of the known vendors.
//!
//! Works with every authentication scheme. One event:
//!
//! ```json
//! {
//!   "id": "evt-2026-000017",
//!   "kind": "INSTALLED",
//!   "pass": "loyalty-42",
//!   "vendor_kind": "card.added",
//!   "occur_time": "2026-03-01T12:30:05.250Z",
//!   "installation": { "id": "reg-7", "scope": "REGISTRATION" },
//!   "wallet": { "kind": "APPLE", "native": "apple", "device_os": "ios", "device_app": "wallet" },
//!   "refs": { "campaign": "spring", "distribution": "mail", "class": "gold", "serial_number": "S-42", "external_id": "member-42" },
//!   "snapshot": { "update_time": "2026-03-01T12:30:05.250Z", "create_time": "2026-02-01T00:00:00Z", "voided": false, "redeemed_count": 0, "status": "ACTIVE" },
//!   "attributes": { "channel": "web" },
//!   "personal": { "display_name": "Sample Holder", "email_address": "holder@example.com", "city": "Lisbon" }
//! }
//! ```
//!
//! | member | |
//! |---|---|
//! | `kind` | required: a kind's name except ERASED; `CONTROL` for a handshake or test, which yields no facts; OTHER needs a `vendor_kind` |
//! | `pass` | required: the sender's id of the pass, 1 to 256 visible ASCII characters |
//! | `id` | the sender's id of the event; the same for every retry |
//! | `occur_time` | RFC 3339 with offset; the receive time if missing |
//! | `installation.scope` | REGISTRATION (default), DEVICE or ACCOUNT |
//! | `wallet.kind` | APPLE, GOOGLE, SAMSUNG, HUAWEI, WALLET_PASSES, PASS2U, PASS_WALLET, VENDOR, ANDROID_OTHER; anything else is unknown |
//! | `redemption` | with kind REDEEMED: `{"count": 3, "time": "…", "scanner": "till-9"}` |
//! | `attributes` | what is not about a person; values that are no text are kept as JSON |
//! | `personal` | names other than the two above are free |
//!
//! A batch is `{"events": [ … ]}` with 1 to 32 events, all about one pass. What makes an event the same one
//! again: its `id`; else the `webhook-id` of a Standard Webhooks delivery and the event's place in the
//! batch; else its content without `personal`. Unknown members are ignored, and noted as `UNKNOWN_MEMBER`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use pass_domain::Timestamp;
use pass_domain::delivery::{Decoded, DecodedFacts, Undecodable};
use pass_domain::fact::{
    Assertion, Fact, IdentityBasis, InstallationRef, InstallationScope, Personal, Redemption, Refs,
    Snapshot, TimeBasis, VendorStatus, Wallet, WalletKind,
};
use pass_domain::identity::{IDENTITY_VERSION, Part, content_digest, event_id};
use pass_domain::ids::VendorId;
use pass_domain::kind::Kind;
use pass_domain::limits::FACTS_PER_DELIVERY_MAX;
use serde_json::value::RawValue;

use crate::clean::{Notes, duplicate, id, id_optional, invalid, kind_unknown, missing, time};
use crate::json::{List, Members, Text, object, parse, readable};
use crate::raw;
use crate::source::Input;

object! {
    struct Batch<'a> {
        events: List<&'a RawValue> = "events",
    }
}

object! {
    struct Event<'a> {
        id: Text<'a> = "id",
        kind: Text<'a> = "kind",
        pass: Text<'a> = "pass",
        vendor_kind: Text<'a> = "vendor_kind",
        occur_time: Text<'a> = "occur_time",
        installation: InstallationMember<'a> = "installation",
        wallet: WalletMember<'a> = "wallet",
        refs: RefsMember<'a> = "refs",
        redemption: RedemptionMember<'a> = "redemption",
        snapshot: SnapshotMember<'a> = "snapshot",
        attributes: Members<'a> = "attributes",
        personal: Members<'a> = "personal",
    }
}

object! {
    struct InstallationMember<'a> {
        id: Text<'a> = "id",
        scope: Text<'a> = "scope",
    }
}

object! {
    struct WalletMember<'a> {
        kind: Text<'a> = "kind",
        native: Text<'a> = "native",
        device_os: Text<'a> = "device_os",
        device_app: Text<'a> = "device_app",
    }
}

object! {
    struct RefsMember<'a> {
        campaign: Text<'a> = "campaign",
        distribution: Text<'a> = "distribution",
        class: Text<'a> = "class",
        serial_number: Text<'a> = "serial_number",
        external_id: Text<'a> = "external_id",
    }
}

object! {
    struct RedemptionMember<'a> {
        count: i64 = "count",
        time: Text<'a> = "time",
        scanner: Text<'a> = "scanner",
    }
}

object! {
    struct SnapshotMember<'a> {
        update_time: Text<'a> = "update_time",
        create_time: Text<'a> = "create_time",
        voided: bool = "voided",
        redeemed_count: i64 = "redeemed_count",
        status: Text<'a> = "status",
    }
}

pub(crate) fn decode(input: &Input<'_>) -> Result<Decoded, Undecodable> {
    let body = readable(input.body)?;
    let batch: Batch<'_> = parse(body)?;
    if let Some(field) = batch.duplicate {
        return Err(duplicate(field));
    }
    let mut notes = Notes::default();
    let raws: Vec<&str> = match &batch.events {
        None => vec![body],
        Some(_) if batch.unknown => {
            return Err(invalid(
                "events",
                "stands beside other members; send a batch or one event",
            ));
        }
        Some(events) => events.0.iter().map(|event| event.get()).collect(),
    };
    if raws.is_empty() || raws.len() > FACTS_PER_DELIVERY_MAX {
        return Err(invalid(
            "events",
            &format!("must have 1 to {FACTS_PER_DELIVERY_MAX} events"),
        ));
    }
    let mut decoded = DecodedFacts::default();
    for (index, raw) in raws.into_iter().enumerate() {
        let event: Event<'_> = parse(raw)?;
        check_members(&event, &mut notes)?;
        if event.kind.as_ref().is_some_and(|kind| kind.0 == "CONTROL") {
            if batch.events.is_some() {
                return Err(invalid("kind", "CONTROL can't be part of a batch"));
            }
            let vendor_kind = event
                .vendor_kind
                .as_ref()
                .map_or("CONTROL", |text| &*text.0);
            return Ok(Decoded::Control {
                vendor_kind: notes.text(vendor_kind),
            });
        }
        add(input, index, raw, &event, &mut decoded, &mut notes)?;
    }
    decoded.notes = notes.into_vec();
    Ok(Decoded::Facts(Box::new(decoded)))
}

/// Refuses a key that is there twice, and notes keys that are not in the format.
fn check_members(event: &Event<'_>, notes: &mut Notes) -> Result<(), Undecodable> {
    let members = [
        Some(("", event.duplicate, event.unknown)),
        event
            .installation
            .as_ref()
            .map(|member| ("installation.", member.duplicate, member.unknown)),
        event
            .wallet
            .as_ref()
            .map(|member| ("wallet.", member.duplicate, member.unknown)),
        event
            .refs
            .as_ref()
            .map(|member| ("refs.", member.duplicate, member.unknown)),
        event
            .redemption
            .as_ref()
            .map(|member| ("redemption.", member.duplicate, member.unknown)),
        event
            .snapshot
            .as_ref()
            .map(|member| ("snapshot.", member.duplicate, member.unknown)),
    ];
    for (parent, repeated, has_unknown) in members.into_iter().flatten() {
        if let Some(field) = repeated {
            return Err(duplicate(&format!("{parent}{field}")));
        }
        if has_unknown {
            notes.add("UNKNOWN_MEMBER");
        }
    }
    Ok(())
}

fn add(
    input: &Input<'_>,
    index: usize,
    raw: &str,
    event: &Event<'_>,
    decoded: &mut DecodedFacts,
    notes: &mut Notes,
) -> Result<(), Undecodable> {
    let kind_name = text(&event.kind).ok_or_else(|| missing("kind"))?;
    let kind = Kind::from_name(kind_name)
        .filter(|kind| *kind != Kind::Erased)
        .ok_or_else(|| kind_unknown("kind"))?;
    let vendor_kind = text(&event.vendor_kind).filter(|text| !text.is_empty());
    if kind == Kind::Other && vendor_kind.is_none() {
        return Err(missing("vendor_kind"));
    }
    let pass = id("pass", text(&event.pass))?;
    if decoded
        .facts
        .first()
        .is_some_and(|first| first.pass != pass)
    {
        return Err(invalid(
            "events",
            "are about different passes; send one delivery for each pass",
        ));
    }
    let vendor_time = time("occur_time", event.occur_time.as_ref().map(|text| &text.0))?;
    let occur_time = vendor_time.unwrap_or(input.receive_time);
    let own_id = id_optional("id", text(&event.id))?;
    let digest = digest_without_personal(raw)?;
    let (fact_id, identity_basis) = identity(
        input,
        index,
        kind,
        &pass,
        own_id.as_ref(),
        vendor_time,
        &digest,
    );
    let refs = refs(event, notes);

    let redemption = match (&event.redemption, kind) {
        (Some(member), Kind::Redeemed) => Some(Redemption {
            count: member.count,
            time: time("redemption.time", member.time.as_ref().map(|text| &text.0))?,
            scanner: notes.optional(text(&member.scanner)),
        }),
        (None, Kind::Redeemed) => Some(Redemption::default()),
        (Some(_), _) => return Err(invalid("redemption", "is only for kind REDEEMED")),
        (None, _) => None,
    };
    let mut attributes = BTreeMap::new();
    for (name, value) in event.attributes.iter().flat_map(|members| &members.0) {
        notes.attribute(&mut attributes, name, &value.0);
    }
    let fact = Fact {
        id: fact_id,
        identity_version: IDENTITY_VERSION,
        identity_basis,
        pass: pass.clone(),
        kind,
        vendor_kind: notes.text(vendor_kind.unwrap_or(kind_name)),
        assertion: Assertion::Reported,
        occur_time,
        time_basis: if vendor_time.is_some() {
            TimeBasis::VendorEvent
        } else {
            TimeBasis::Received
        },
        installation: installation(event)?,
        wallet: event.wallet.as_ref().map(|member| wallet(member, notes)),
        refs: refs.clone(),
        redemption,
        attributes,
        content_digest: content_digest(&[Part::Bytes(&digest)]),
    };
    match decoded.facts.iter().find(|earlier| earlier.id == fact.id) {
        None => decoded.facts.push(fact),
        Some(earlier) if *earlier == fact => notes.add("EVENT_REPEATED"),
        Some(_) => return Err(duplicate("id")),
    }
    if let Some(member) = &event.snapshot {
        let snapshot = snapshot(member, pass, occur_time, refs, notes)?;
        let is_newer = decoded.snapshot.as_ref().is_none_or(|old| {
            (snapshot.update_time, snapshot.content_digest) > (old.update_time, old.content_digest)
        });
        if is_newer {
            decoded.snapshot = Some(snapshot);
        }
    }
    add_personal(event, &mut decoded.personal, notes);
    Ok(())
}

fn text<'a>(text: &'a Option<Text<'_>>) -> Option<&'a str> {
    text.as_ref().map(|text| &*text.0)
}

/// A digest of an event's content; what is personal stays out.
fn digest_without_personal(json: &str) -> Result<[u8; 32], Undecodable> {
    let fault = |fault| match fault {
        raw::Fault::Duplicate => duplicate("a member of the event"),
        raw::Fault::Broken => invalid("the event", "has a text that is not Unicode"),
    };
    let mut members: Vec<(Cow<'_, str>, &str)> =
        raw::members(json.trim_ascii_start()).map_err(fault)?;
    members.retain(|(name, value)| name != "personal" && *value != "null");
    raw::digest_members(members).map_err(fault)
}

fn identity(
    input: &Input<'_>,
    index: usize,
    kind: Kind,
    pass: &VendorId,
    own_id: Option<&VendorId>,
    vendor_time: Option<Timestamp>,
    digest: &[u8],
) -> (pass_domain::ids::EventId, IdentityBasis) {
    let pass = Part::Text(pass.as_str());
    if let Some(own_id) = own_id {
        // An event's own id stays the same however events are grouped, so its place is always 0.
        let parts = [Part::Text(own_id.as_str()), pass, Part::Integer(0)];
        return (
            event_id(input.source, "EVENT", &parts, None),
            IdentityBasis::VendorId,
        );
    }
    if let Some(message_id) = input.message_id {
        let ordinal = i64::try_from(index).expect("a batch has at most 32 events");
        let parts = [Part::Text(message_id), pass, Part::Integer(ordinal)];
        return (
            event_id(input.source, "MESSAGE", &parts, None),
            IdentityBasis::VendorId,
        );
    }
    (
        event_id(
            input.source,
            kind.name(),
            &[pass, Part::Bytes(digest)],
            vendor_time,
        ),
        IdentityBasis::Content,
    )
}

fn installation(event: &Event<'_>) -> Result<Option<InstallationRef>, Undecodable> {
    let Some(member) = &event.installation else {
        return Ok(None);
    };
    let scope = match text(&member.scope) {
        None | Some("REGISTRATION") => InstallationScope::Registration,
        Some("DEVICE") => InstallationScope::Device,
        Some("ACCOUNT") => InstallationScope::Account,
        Some(_) => {
            return Err(invalid(
                "installation.scope",
                "must be REGISTRATION, DEVICE or ACCOUNT",
            ));
        }
    };
    Ok(Some(InstallationRef {
        id: id("installation.id", text(&member.id))?,
        scope,
    }))
}

fn wallet(member: &WalletMember<'_>, notes: &mut Notes) -> Wallet {
    let word = text(&member.kind);
    let kind = match word.unwrap_or_default() {
        "APPLE" => WalletKind::Apple,
        "GOOGLE" => WalletKind::Google,
        "SAMSUNG" => WalletKind::Samsung,
        "HUAWEI" => WalletKind::Huawei,
        "WALLET_PASSES" => WalletKind::WalletPasses,
        "PASS2U" => WalletKind::Pass2u,
        "PASS_WALLET" => WalletKind::PassWallet,
        "VENDOR" => WalletKind::Vendor,
        "ANDROID_OTHER" => WalletKind::AndroidOther,
        _ => WalletKind::Unknown,
    };
    Wallet {
        kind,
        native: notes.optional(text(&member.native).or(word)),
        device_os: notes.optional(text(&member.device_os)),
        device_app: notes.optional(text(&member.device_app)),
    }
}

fn refs(event: &Event<'_>, notes: &mut Notes) -> Refs {
    let Some(member) = &event.refs else {
        return Refs::default();
    };
    Refs {
        campaign: notes.optional(text(&member.campaign)),
        distribution: notes.optional(text(&member.distribution)),
        class: notes.optional(text(&member.class)),
        serial_number: notes.optional(text(&member.serial_number)),
        external_id: notes.optional(text(&member.external_id)),
    }
}

fn snapshot(
    member: &SnapshotMember<'_>,
    pass: VendorId,
    occur_time: Timestamp,
    refs: Refs,
    notes: &mut Notes,
) -> Result<Snapshot, Undecodable> {
    let update_time = time(
        "snapshot.update_time",
        member.update_time.as_ref().map(|text| &text.0),
    )?;
    let create_time = time(
        "snapshot.create_time",
        member.create_time.as_ref().map(|text| &text.0),
    )?;
    let status = member.status.as_ref().map(|status| notes.text(&status.0));
    Ok(Snapshot {
        pass,
        update_time: update_time.unwrap_or(occur_time),
        content_digest: content_digest(&[
            Part::integer(member.voided.map(i64::from)),
            Part::integer(member.redeemed_count),
            Part::text(status.as_deref()),
            Part::time(create_time),
            Part::Text(&refs.campaign),
            Part::Text(&refs.distribution),
            Part::Text(&refs.class),
            Part::Text(&refs.serial_number),
            Part::Text(&refs.external_id),
        ]),
        voided: member.voided,
        redeemed_count: member.redeemed_count,
        vendor_status: status.map(|name| VendorStatus {
            number: None,
            name,
            attained: Vec::new(),
        }),
        create_time,
        refs,
    })
}

fn add_personal(event: &Event<'_>, personal: &mut Personal, notes: &mut Notes) {
    for (name, value) in event.personal.iter().flat_map(|members| &members.0) {
        match &**name {
            "display_name" => personal.display_name = notes.text(&value.0),
            "email_address" => personal.email_address = notes.text(&value.0),
            _ => notes.attribute(&mut personal.attributes, name, &value.0),
        }
    }
}
