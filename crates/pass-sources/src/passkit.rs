//! PassKit.
//!
//! A callback is `{event, pass}`: the name of one event and everything the vendor knows of the pass. The
//! state repeats the times of earlier transitions, so every transition time that shows becomes a fact. The
//! one the callback names is REPORTED, the others are DERIVED, and both have the same id: a lost callback
//! is made good by the next, and an update of a pass that was removed long ago adds nothing. A removal is
//! told as `PASS_EVENT_UNINSTALLED` or as `PASS_EVENT_RECORD_UPDATED`; the time decides, not the name.
//!
//! | time | kind |
//! |---|---|
//! | `issueAt` | CREATED |
//! | `firstInstalledAt`, `lastInstalledAt` | INSTALLED (the fold takes a second one as a refresh) |
//! | `firstUninstalledAt`, `lastUninstalledAt` | UNINSTALLED |
//! | `invalidatedAt` | VOIDED |
//! | `lastUpdatedAt`, only if the callback names an update | UPDATED |
//!
//! An UPDATED without its time, and a named transition whose time is missing, is identified by a digest of
//! the whole pass. Members whose value is zero are left out by the vendor: no status means `PASS_ISSUED`,
//! no seconds means 0.

mod enums;
mod wire;

use std::collections::BTreeMap;

use pass_domain::Timestamp;
use pass_domain::delivery::{Decoded, DecodedFacts, Method, Undecodable};
use pass_domain::fact::{
    Assertion, Fact, IdentityBasis, Personal, Redemption, Refs, Snapshot, TimeBasis, VendorStatus,
    Wallet,
};
use pass_domain::identity::{IDENTITY_VERSION, Part, content_digest, event_id};
use pass_domain::ids::VendorId;
use pass_domain::kind::Kind;

use crate::clean::{Notes, duplicate, id, invalid, kind_unknown, missing};
use crate::json::{Loose, Text, parse, readable};
use crate::raw;
use crate::source::Input;
use wire::{Callback, Metadata, Moment, Pass};

/// Most life-cycle names kept.
const ATTAINED_MAX: usize = 64;

/// Names in `recordData` whose content is known not to be about a person. Others that look like them may be fields
/// of the project's own, such as a birthday.
const RECORD_ATTRIBUTES: [&str; 15] = [
    "coupons.coupon.externalId",
    "design.pointsType",
    "members.member.externalId",
    "members.member.id",
    "members.member.points",
    "members.member.secondaryPoints",
    "members.member.status",
    "members.member.tierPoints",
    "members.program.id",
    "members.program.name",
    "members.tier.id",
    "members.tier.name",
    "universal.issued",
    "universal.optOut",
    "universal.status",
];

/// The transition times of a pass, with the vendor's names.
struct Times {
    transitions: [(&'static str, Kind, Option<Timestamp>); 6],
    last_updated_at: Option<Timestamp>,
    rendered_at: Option<Timestamp>,
}

impl Times {
    fn read(metadata: &Metadata<'_>, notes: &mut Notes) -> Result<Self, Undecodable> {
        let mut at = |field: &'static str, moment: &Option<Moment>| match moment {
            None | Some(Moment::Absent) => Ok(None),
            Some(Moment::At(time)) => Ok(Some(*time)),
            Some(Moment::Empty) => {
                notes.add("EMPTY_TIME");
                Ok(None)
            }
            Some(Moment::Duplicate) => {
                Err(duplicate(&format!("a member of pass.metadata.{field}")))
            }
            Some(Moment::Invalid) => Err(invalid(
                &format!("pass.metadata.{field}"),
                "is not a time in the years 1 to 9999",
            )),
        };
        Ok(Self {
            transitions: [
                ("issueAt", Kind::Created, at("issueAt", &metadata.issue_at)?),
                (
                    "firstInstalledAt",
                    Kind::Installed,
                    at("firstInstalledAt", &metadata.first_installed_at)?,
                ),
                (
                    "lastInstalledAt",
                    Kind::Installed,
                    at("lastInstalledAt", &metadata.last_installed_at)?,
                ),
                (
                    "firstUninstalledAt",
                    Kind::Uninstalled,
                    at("firstUninstalledAt", &metadata.first_uninstalled_at)?,
                ),
                (
                    "lastUninstalledAt",
                    Kind::Uninstalled,
                    at("lastUninstalledAt", &metadata.last_uninstalled_at)?,
                ),
                (
                    "invalidatedAt",
                    Kind::Voided,
                    at("invalidatedAt", &metadata.invalidated_at)?,
                ),
            ],
            last_updated_at: at("lastUpdatedAt", &metadata.last_updated_at)?,
            rendered_at: at("renderedAt", &metadata.rendered_at)?,
        })
    }

    /// The latest transition of a kind: the one that a callback naming the kind is about.
    fn latest(&self, kind: Kind) -> Option<Timestamp> {
        self.transitions
            .iter()
            .filter(|(_, of, _)| *of == kind)
            .filter_map(|(_, _, time)| *time)
            .max()
    }

    /// The latest time of all: the state is at least that new.
    fn newest(&self) -> Option<Timestamp> {
        let all = self.transitions.iter().map(|(_, _, time)| *time);
        all.chain([self.last_updated_at, self.rendered_at])
            .flatten()
            .max()
    }
}

/// What all facts of a delivery share.
struct Shared<'a> {
    input: &'a Input<'a>,
    pass: VendorId,
    refs: Refs,
    wallet: Option<Wallet>,
    content_digest: u64,
}

pub(crate) fn decode(input: &Input<'_>) -> Result<Decoded, Undecodable> {
    let text = readable(input.body)?;
    let callback: Callback<'_> = parse(text)?;
    if let Some(field) = callback.duplicate {
        return Err(duplicate(field));
    }
    let mut notes = Notes::default();
    let event = named_event(&callback, input.method, &mut notes)?;
    let kind = enums::event_kind(event).ok_or_else(|| kind_unknown("event"))?;
    let pass = callback.pass.as_ref().ok_or_else(|| missing("pass"))?;
    if let Some(field) = pass.duplicate {
        return Err(duplicate(&format!("pass.{field}")));
    }
    let empty = Metadata::default();
    let metadata = match (&pass.metadata, &pass.metadata_other_case) {
        (Some(_), Some(_)) => return Err(duplicate("pass.metadata")),
        (Some(metadata), None) => metadata,
        (None, Some(metadata)) => {
            notes.add("METADATA_CASE");
            metadata
        }
        (None, None) => &empty,
    };
    if let Some(field) = metadata.duplicate {
        return Err(duplicate(&format!("pass.metadata.{field}")));
    }
    if callback.unknown || pass.unknown || metadata.unknown {
        notes.add("UNKNOWN_MEMBER");
    }
    let pass_id = id("pass.id", pass.id.as_ref().map(|text| &*text.0))?;
    let times = Times::read(metadata, &mut notes)?;
    let attained = attained(metadata, &mut notes);
    let refs = refs(pass, &mut notes);
    let protocol = pass
        .protocol
        .as_ref()
        .map(|code| notes.text(&enums::protocol(code)))
        .unwrap_or_default();

    let shared = Shared {
        input,
        wallet: enums::only_wallet(&attained).map(|(kind, native)| Wallet {
            kind,
            native: native.to_owned(),
            device_os: String::new(),
            device_app: String::new(),
        }),
        // A transition is told again by every later callback, so only what cannot change since belongs here.
        content_digest: content_digest(&[Part::Text(&refs.class), Part::Text(&protocol)]),
        pass: pass_id,
        refs,
    };
    let (attributes, personal) = attributes_and_personal(pass, metadata, &protocol, &mut notes);
    let facts = facts(&shared, text, event, kind, &times, attributes, &mut notes)?;

    let status = metadata.status.clone().unwrap_or(enums::Code::Number(0));
    let (number, name) = enums::status(&status);
    let vendor_status = VendorStatus {
        number,
        name: notes.text(&name),
        attained,
    };
    let Shared { pass, refs, .. } = shared;
    let joined = vendor_status.attained.join(",");
    let snapshot = Snapshot {
        update_time: times.newest().unwrap_or(input.receive_time),
        content_digest: content_digest(&[
            Part::Text(&vendor_status.name),
            Part::Text(&joined),
            Part::Text(&refs.class),
            Part::Text(&refs.external_id),
            Part::time(times.latest(Kind::Created)),
        ]),
        pass,
        voided: None,
        redeemed_count: None,
        vendor_status: Some(vendor_status),
        create_time: times.latest(Kind::Created),
        refs,
    };
    Ok(Decoded::Facts(Box::new(DecodedFacts {
        facts,
        snapshot: Some(snapshot),
        personal,
        notes: notes.into_vec(),
    })))
}

/// The callback's event. A DELETE says by its method what it is, should the name be missing.
fn named_event<'a>(
    callback: &'a Callback<'_>,
    method: Method,
    notes: &mut Notes,
) -> Result<&'a str, Undecodable> {
    const DELETED: &str = "PASS_EVENT_RECORD_DELETED";
    let event = callback
        .event
        .as_ref()
        .map(|text| &*text.0)
        .filter(|event| !event.is_empty());
    match (event, method) {
        (Some(event), Method::Delete)
            if enums::event_kind(event).is_some_and(|kind| kind != Kind::Deleted) =>
        {
            notes.add("METHOD_MISMATCH");
            Ok(event)
        }
        (Some(event), _) => Ok(event),
        (None, Method::Delete) => {
            notes.add("EVENT_FROM_METHOD");
            Ok(DELETED)
        }
        (None, _) => Err(missing("event")),
    }
}

fn facts(
    shared: &Shared<'_>,
    text: &str,
    event: &str,
    kind: Kind,
    times: &Times,
    attributes: BTreeMap<String, String>,
    notes: &mut Notes,
) -> Result<Vec<Fact>, Undecodable> {
    let mut facts: Vec<Fact> = Vec::with_capacity(8);
    for (field, kind, time) in &times.transitions {
        let Some(time) = time else { continue };
        // The first and the last of a kind are often the same one.
        if !facts
            .iter()
            .any(|fact| fact.kind == *kind && fact.occur_time == *time)
        {
            facts.push(shared.at(*kind, field, Assertion::Derived, *time));
        }
    }
    let named_time = if kind == Kind::Updated {
        times.last_updated_at
    } else {
        times.latest(kind)
    };
    let named = match named_time {
        Some(time) => match facts
            .iter_mut()
            .find(|fact| fact.kind == kind && fact.occur_time == time)
        {
            Some(fact) => {
                event.clone_into(&mut fact.vendor_kind);
                fact.assertion = Assertion::Reported;
                fact
            }
            None => push(
                &mut facts,
                shared.at(kind, event, Assertion::Reported, time),
            ),
        },
        None if kind == Kind::Deleted => {
            let id = event_id(
                shared.input.source,
                kind.name(),
                &[Part::Text(shared.pass.as_str())],
                None,
            );
            push(
                &mut facts,
                shared.received(kind, event, id, IdentityBasis::EventFields),
            )
        }
        None => {
            if kind != Kind::Updated && kind != Kind::Redeemed {
                notes.add("TRANSITION_TIME_MISSING");
            }
            let digest = pass_digest(text)?;
            let parts = [Part::Text(shared.pass.as_str()), Part::Bytes(&digest)];
            let id = event_id(shared.input.source, kind.name(), &parts, None);
            push(
                &mut facts,
                shared.received(kind, event, id, IdentityBasis::Content),
            )
        }
    };
    named.attributes = attributes;
    if kind == Kind::Redeemed {
        named.redemption = Some(Redemption::default());
    }
    Ok(facts)
}

fn push(facts: &mut Vec<Fact>, fact: Fact) -> &mut Fact {
    facts.push(fact);
    facts.last_mut().expect("a fact was just pushed")
}

impl Shared<'_> {
    /// A fact that is identified by its time.
    fn at(&self, kind: Kind, vendor_kind: &str, assertion: Assertion, time: Timestamp) -> Fact {
        let parts = [Part::Text(self.pass.as_str()), Part::Time(time)];
        Fact {
            assertion,
            occur_time: time,
            time_basis: TimeBasis::VendorState,
            ..self.received(
                kind,
                vendor_kind,
                event_id(self.input.source, kind.name(), &parts, Some(time)),
                IdentityBasis::TransitionTime,
            )
        }
    }

    /// A reported fact that has no time but that of its delivery.
    fn received(
        &self,
        kind: Kind,
        vendor_kind: &str,
        id: pass_domain::ids::EventId,
        basis: IdentityBasis,
    ) -> Fact {
        let about_wallet = matches!(kind, Kind::Installed | Kind::Uninstalled);
        Fact {
            id,
            identity_version: IDENTITY_VERSION,
            identity_basis: basis,
            pass: self.pass.clone(),
            kind,
            vendor_kind: vendor_kind.to_owned(),
            assertion: Assertion::Reported,
            occur_time: self.input.receive_time,
            time_basis: TimeBasis::Received,
            installation: None,
            wallet: self.wallet.clone().filter(|_| about_wallet),
            refs: self.refs.clone(),
            redemption: None,
            attributes: BTreeMap::new(),
            content_digest: self.content_digest,
        }
    }
}

/// A digest of everything the vendor says of the pass, however it is written.
fn pass_digest(text: &str) -> Result<[u8; 32], Undecodable> {
    // The text was accepted as JSON when the callback was read.
    let found = raw::find(text.trim_ascii_start(), &["pass".to_owned()]);
    found
        .and_then(|pass| raw::digest(pass.unwrap_or("null")))
        .map_err(|fault| match fault {
            raw::Fault::Duplicate => duplicate("a member of pass"),
            raw::Fault::Broken => invalid("pass", "has a text that is not Unicode"),
        })
}

fn attained(metadata: &Metadata<'_>, notes: &mut Notes) -> Vec<String> {
    let codes = metadata
        .lifecycle_events
        .as_ref()
        .map(|list| list.0.as_slice())
        .unwrap_or_default();
    let mut names: Vec<String> = codes
        .iter()
        .map(|code| notes.text(&enums::lifecycle(code)))
        .collect();
    names.sort_unstable();
    names.dedup();
    if names.len() > ATTAINED_MAX {
        notes.add("LIFECYCLE_CUT");
        names.truncate(ATTAINED_MAX);
    }
    names
}

fn refs(pass: &Pass<'_>, notes: &mut Notes) -> Refs {
    let plain = |value: &Option<Loose<'_>>| {
        value
            .as_ref()
            .map(|value| value.0.clone().into_owned())
            .filter(|text| !text.is_empty())
    };
    let record = |name: &str| {
        pass.record_data
            .as_ref()
            .and_then(|data| data.get(name))
            .map(str::to_owned)
    };
    let external_id = plain(&pass.external_id)
        .or_else(|| record("members.member.externalId"))
        .or_else(|| record("coupons.coupon.externalId"));
    Refs {
        class: notes.optional(plain(&pass.class_id).as_deref()),
        external_id: notes.optional(external_id.as_deref()),
        ..Refs::default()
    }
}

fn attributes_and_personal(
    pass: &Pass<'_>,
    metadata: &Metadata<'_>,
    protocol: &str,
    notes: &mut Notes,
) -> (BTreeMap<String, String>, Personal) {
    let mut attributes = BTreeMap::new();
    let mut personal = Personal::default();
    if !protocol.is_empty() {
        notes.attribute(&mut attributes, "protocol", protocol);
    }
    for (name, codes) in [
        (
            "installDeviceAttributes",
            &metadata.install_device_attributes,
        ),
        ("renderDeviceAttributes", &metadata.render_device_attributes),
    ] {
        if let Some(codes) = codes.as_ref().filter(|codes| !codes.0.is_empty()) {
            notes.attribute(&mut attributes, name, &enums::devices(&codes.0));
        }
    }
    let pass_id = pass.id.as_ref().map(|Text(id)| &**id);
    if let Some(alt_id) = metadata
        .alt_id
        .as_ref()
        .filter(|alt_id| Some(&*alt_id.0) != pass_id)
    {
        // Whatever the vendor was told to know the pass by.
        notes.attribute(&mut personal.attributes, "altId", &alt_id.0);
    }
    for (name, value) in pass.person_details.iter().flat_map(|members| &members.0) {
        match &**name {
            "displayName" => personal.display_name = notes.text(&value.0),
            "emailAddress" => personal.email_address = notes.text(&value.0),
            _ => notes.attribute(
                &mut personal.attributes,
                &format!("personDetails.{name}"),
                &value.0,
            ),
        }
    }
    for (name, value) in pass.record_data.iter().flat_map(|members| &members.0) {
        let is_repeated = match &**name {
            "person.displayName" => value.0 == personal.display_name,
            "person.emailAddress" => value.0 == personal.email_address,
            _ => false,
        };
        if RECORD_ATTRIBUTES.contains(&&**name) {
            notes.attribute(&mut attributes, name, &value.0);
        } else if !is_repeated {
            notes.attribute(&mut personal.attributes, name, &value.0);
        }
    }
    for (name, value) in metadata.utm.iter().flat_map(|members| &members.0) {
        notes.attribute(&mut personal.attributes, &format!("utm.{name}"), &value.0);
    }
    for (name, value) in [
        ("issueIpAddress", &metadata.issue_ip_address),
        ("installIpAddress", &metadata.install_ip_address),
        ("renderIpAddress", &metadata.render_ip_address),
    ] {
        if let Some(value) = value {
            notes.attribute(&mut personal.ip_addresses, name, &value.0);
        }
    }
    for (name, value) in [
        ("installUserAgent", &metadata.install_user_agent),
        ("renderUserAgent", &metadata.render_user_agent),
    ] {
        if let Some(value) = value {
            notes.attribute(&mut personal.user_agents, name, &value.0);
        }
    }
    for (name, value) in metadata
        .render_location
        .iter()
        .flat_map(|members| &members.0)
    {
        notes.attribute(&mut personal.position, name, &value.0);
    }
    (attributes, personal)
}
