//! Passworks.
//!
//! Two revisions of the callback are documented and nothing in a body tells them apart, so both spellings
//! of a field are always read: `voided` and `voided ` (with a space), `event_at` and `action_at`. There is
//! no event id, no signature and no time finer than a second. A fact's identity is therefore its kind, pass,
//! time, registration and whatever else `event_extra` says (without personal members and nulls).
//!
//! There is no event for voiding or updating: both show only in the state that every event carries.

use std::borrow::Cow;
use std::collections::BTreeMap;

use pass_domain::delivery::{Decoded, DecodedFacts, Undecodable};
use pass_domain::fact::{
    Assertion, Fact, IdentityBasis, InstallationRef, InstallationScope, Personal, Redemption, Refs,
    Snapshot, TimeBasis, Wallet, WalletKind,
};
use pass_domain::identity::{IDENTITY_VERSION, Part, content_digest, event_id};
use pass_domain::kind::Kind;
use serde_json::value::RawValue;

use crate::clean::{Notes, duplicate, id, id_optional, invalid, kind_unknown, missing, time};
use crate::json::{Loose, Members, Text, object, parse, readable};
use crate::raw;
use crate::source::Input;

object! {
    /// A callback's body.
    struct Callback<'a> {
        event: Text<'a> = "event",
        context: Text<'a> = "context",
        campaign_id: Loose<'a> = "campaign_id",
        distribution_id: Loose<'a> = "distribution_id",
        pass_id: Text<'a> = "pass_id",
        voided: bool = "voided",
        voided_spaced: bool = "voided ",
        serial_number: Loose<'a> = "serial_number",
        redeemed_count: i64 = "redeemed_count",
        redeemed_at: Text<'a> = "redeemed_at",
        created_at: Text<'a> = "created_at",
        updated_at: Text<'a> = "updated_at",
        last_fetched_at: Text<'a> = "last_fetched_at",
        event_at: Text<'a> = "event_at",
        action_at: Text<'a> = "action_at",
        metadata: Members<'a> = "metadata",
        event_extra: &'a RawValue = "event_extra",
    }
}

/// What `event_extra` says.
#[derive(Default)]
struct Extra<'a> {
    pass_id: Option<Cow<'a, str>>,
    registration_id: Option<Cow<'a, str>>,
    device_os: Option<Cow<'a, str>>,
    device_app_vendor: Option<Cow<'a, str>>,
    wallet_type: Option<Cow<'a, str>>,
    /// Members that may say something about a person, personal by name or of unknown content.
    free: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// Digest of everything but personal members and nulls; none if nothing is left.
    digest: Option<[u8; 32]>,
}

pub(crate) fn decode(input: &Input<'_>) -> Result<Decoded, Undecodable> {
    let callback: Callback<'_> = parse(readable(input.body)?)?;
    if let Some(field) = callback.duplicate {
        return Err(duplicate(field.trim_end()));
    }
    let mut notes = Notes::default();
    if callback.unknown {
        notes.add("UNKNOWN_MEMBER");
    }
    let event = callback
        .event
        .as_ref()
        .map(|text| &*text.0)
        .ok_or_else(|| missing("event"))?;
    let kind = kind(event).ok_or_else(|| kind_unknown("event"))?;
    // "pass" is the only context there is so far; the same event of something else would not be about a pass.
    if callback
        .context
        .as_ref()
        .is_some_and(|context| context.0 != "pass")
    {
        return Err(kind_unknown("context"));
    }
    let pass = id("pass_id", callback.pass_id.as_ref().map(|text| &*text.0))?;
    let extra = read_extra(callback.event_extra)?;
    if extra
        .pass_id
        .as_ref()
        .is_some_and(|other| other != pass.as_str())
    {
        notes.add("PASS_ID_MISMATCH");
    }

    let event_at = time("event_at", callback.event_at.as_ref().map(|text| &text.0))?;
    let action_at = time("action_at", callback.action_at.as_ref().map(|text| &text.0))?;
    if event_at.is_none() && action_at.is_some() {
        notes.add("ACTION_AT");
    }
    let occur_time = event_at.or(action_at).ok_or_else(|| missing("event_at"))?;
    let redeemed_at = time(
        "redeemed_at",
        callback.redeemed_at.as_ref().map(|text| &text.0),
    )?;
    let created_at = time(
        "created_at",
        callback.created_at.as_ref().map(|text| &text.0),
    )?;
    let updated_at = time(
        "updated_at",
        callback.updated_at.as_ref().map(|text| &text.0),
    )?;
    if callback.voided_spaced.is_some() {
        notes.add("TRAILING_SPACE_KEY");
    }
    let voided = callback.voided.or(callback.voided_spaced);

    let registration = id_optional(
        "event_extra.registration_id",
        extra.registration_id.as_deref(),
    )?;
    let refs = Refs {
        campaign: loose(&mut notes, callback.campaign_id.as_ref()),
        distribution: loose(&mut notes, callback.distribution_id.as_ref()),
        class: String::new(),
        serial_number: loose(&mut notes, callback.serial_number.as_ref()),
        external_id: String::new(),
    };

    let mut parts = vec![
        Part::Text(pass.as_str()),
        Part::Time(occur_time),
        Part::text(registration.as_ref().map(|id| id.as_str())),
        extra
            .digest
            .as_ref()
            .map_or(Part::Absent, |digest| Part::Bytes(digest)),
    ];
    if kind == Kind::Redeemed {
        parts.extend([
            Part::integer(callback.redeemed_count),
            Part::time(redeemed_at),
        ]);
    }
    let fact_id = event_id(input.source, kind.name(), &parts, Some(occur_time));
    let voided_part = Part::integer(voided.map(i64::from));
    let content = [
        Part::Text(&refs.campaign),
        Part::Text(&refs.distribution),
        Part::Text(&refs.serial_number),
        voided_part,
        Part::integer(callback.redeemed_count),
        Part::time(redeemed_at),
    ];

    let mut attributes = BTreeMap::new();
    if let Some(fetched) = &callback.last_fetched_at {
        notes.attribute(&mut attributes, "last_fetched_at", &fetched.0);
    }
    let fact = Fact {
        id: fact_id,
        identity_version: IDENTITY_VERSION,
        identity_basis: IdentityBasis::EventFields,
        pass: pass.clone(),
        kind,
        vendor_kind: event.to_owned(),
        assertion: Assertion::Reported,
        occur_time,
        time_basis: TimeBasis::VendorEvent,
        installation: registration.map(|id| InstallationRef {
            id,
            scope: InstallationScope::Registration,
        }),
        wallet: wallet(&mut notes, &extra),
        refs: refs.clone(),
        redemption: (kind == Kind::Redeemed).then(|| Redemption {
            count: callback.redeemed_count,
            time: redeemed_at,
            scanner: String::new(),
        }),
        attributes,
        content_digest: content_digest(&content),
    };
    let snapshot = Snapshot {
        pass,
        update_time: updated_at.unwrap_or(occur_time),
        content_digest: content_digest(&[&content[..], &[Part::time(created_at)]].concat()),
        voided,
        redeemed_count: callback.redeemed_count,
        vendor_status: None,
        create_time: created_at,
        refs,
    };
    let personal = personal(&mut notes, &extra, callback.metadata.as_ref());
    Ok(Decoded::Facts(Box::new(DecodedFacts {
        facts: vec![fact],
        snapshot: Some(snapshot),
        personal,
        notes: notes.into_vec(),
    })))
}

fn kind(event: &str) -> Option<Kind> {
    Some(match event {
        "created" => Kind::Created,
        "downloaded" => Kind::Downloaded,
        "installed" => Kind::Installed,
        "fetched" => Kind::Fetched,
        "redeemed" => Kind::Redeemed,
        "uninstalled" => Kind::Uninstalled,
        _ => return None,
    })
}

/// Members of `event_extra` that are about a person, by name.
fn is_personal(name: &str) -> bool {
    [
        "ip",
        "ip_address",
        "user_agent",
        "email",
        "name",
        "latitude",
        "longitude",
        "location",
        "country",
        "city",
    ]
    .contains(&name)
}

fn read_extra(raw_extra: Option<&RawValue>) -> Result<Extra<'_>, Undecodable> {
    let field = "event_extra";
    let fault = |fault| match fault {
        raw::Fault::Duplicate => duplicate("a member of event_extra"),
        raw::Fault::Broken => invalid(field, "is not readable"),
    };
    let mut extra = Extra::default();
    let Some(raw_extra) = raw_extra.map(RawValue::get) else {
        return Ok(extra);
    };
    match raw_extra.as_bytes().first() {
        Some(b'{') => {}
        // Some languages write an empty map as an empty list.
        Some(b'[') if raw_extra[1..].trim_start() == "]" => return Ok(extra),
        _ => return Err(invalid(field, "is not an object")),
    }
    let mut members = raw::members(raw_extra).map_err(fault)?;
    for (name, value) in &members {
        let text = || match value.as_bytes().first() {
            Some(b'"') => raw::string(value).map(Some).map_err(fault),
            _ if *value == "null" => Ok(None),
            _ => Err(invalid(&format!("event_extra.{name}"), "is not a string")),
        };
        match &**name {
            "pass_id" => extra.pass_id = text()?,
            "registration_id" => extra.registration_id = text()?,
            "device_os" => extra.device_os = text()?,
            "device_app_vendor" => extra.device_app_vendor = text()?,
            "wallet_type" => extra.wallet_type = text()?,
            _ if *value != "null" && extra.free.len() < 64 => {
                let plain = if value.starts_with('"') {
                    raw::string(value).map_err(fault)?
                } else {
                    Cow::Borrowed(*value)
                };
                extra.free.push((name.clone(), plain));
            }
            _ => {}
        }
    }
    // The digest also finds keys that are there twice, so it sees the personal ones and nulls first.
    let mut names: Vec<&str> = members.iter().map(|(name, _)| &**name).collect();
    names.sort_unstable();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(fault(raw::Fault::Duplicate));
    }
    members.retain(|(name, value)| *value != "null" && !is_personal(name));
    if !members.is_empty() {
        extra.digest = Some(raw::digest_members(members).map_err(fault)?);
    }
    Ok(extra)
}

fn loose(notes: &mut Notes, value: Option<&Loose<'_>>) -> String {
    notes.optional(value.map(|value| &*value.0))
}

/// The wallet. The callback and the vendor's own API spell the same wallet differently, so both words of
/// the callback are tried.
fn wallet(notes: &mut Notes, extra: &Extra<'_>) -> Option<Wallet> {
    let (wallet_type, app) = (
        extra.wallet_type.as_deref(),
        extra.device_app_vendor.as_deref(),
    );
    if wallet_type.is_none() && app.is_none() && extra.device_os.is_none() {
        return None;
    }
    let kind = [wallet_type, app]
        .into_iter()
        .flatten()
        .find_map(wallet_kind)
        .unwrap_or(WalletKind::Unknown);
    Some(Wallet {
        kind,
        native: notes.optional(wallet_type.or(app)),
        device_os: notes.optional(extra.device_os.as_deref()),
        device_app: notes.optional(app),
    })
}

fn wallet_kind(word: &str) -> Option<WalletKind> {
    Some(match word {
        "apple_wallet" | "passbook" | "apple" => WalletKind::Apple,
        "google_wallet" | "google_pay" | "android_pay" => WalletKind::Google,
        "samsung_wallet" => WalletKind::Samsung,
        "huawei_wallet" => WalletKind::Huawei,
        "wallet_passes" => WalletKind::WalletPasses,
        "pass2u" | "pass2u_wallet" => WalletKind::Pass2u,
        "passwallet" | "pass_wallet" => WalletKind::PassWallet,
        "passworks_wallet" => WalletKind::Vendor,
        _ => return None,
    })
}

fn personal(notes: &mut Notes, extra: &Extra<'_>, metadata: Option<&Members<'_>>) -> Personal {
    let mut personal = Personal::default();
    for (name, value) in &extra.free {
        match &**name {
            "ip" | "ip_address" => notes.attribute(&mut personal.ip_addresses, name, value),
            "user_agent" => notes.attribute(&mut personal.user_agents, name, value),
            "latitude" | "longitude" | "location" | "country" | "city" => {
                notes.attribute(&mut personal.position, name, value)
            }
            _ => notes.attribute(
                &mut personal.attributes,
                &format!("event_extra.{name}"),
                value,
            ),
        }
    }
    for (name, value) in metadata.iter().flat_map(|members| &members.0) {
        notes.attribute(
            &mut personal.attributes,
            &format!("metadata.{name}"),
            &value.0,
        );
    }
    personal
}
