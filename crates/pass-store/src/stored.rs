//! Stored forms: how events, passes and deliveries are written into blobs.
//!
//! Each blob is one version byte and then a message in protobuf's encoding, declared by hand in
//! [`messages`]. These are not the API's messages: the two change at different times. Fields are added,
//! never renumbered or reused; what can't be said by adding fields is a new version byte, and readers
//! keep reading the old one. `tests/golden/` holds blobs of every version ever released.
//!
//! What is a column of its own (position, event id, record time, number) is not repeated in the blob.

mod messages;
mod numbers;
mod pass;
#[cfg(test)]
mod tests;
mod writer;

use std::borrow::Borrow;

use pass_domain::Timestamp;
use pass_domain::delivery::{AuthVerdict, Decoded, DecodedFacts, Delivery, Method, TraceContext};
use pass_domain::event::{Effect, Event, Position};
use pass_domain::fact::{Fact, InstallationRef, Personal, Redemption, Refs, Wallet};
use pass_domain::fold::InstallationKey;
use pass_domain::ids::{DeliveryId, EventId, IdError, PassKey, SourceUid, VendorId};
use pass_domain::time::from_parts;
use prost::Message;

use writer::Writer;

pub(crate) use numbers::Numbered;
pub(crate) use pass::{pass_blob, pass_from, state_bytes};

/// The version of every form so far.
const VERSION: u8 = 1;

/// Why a blob is not what it should be. Names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoredError {
    /// The blob is empty or of a version that this release does not know.
    #[error("stored form has version {0:?}; this release reads 1")]
    Version(Option<u8>),
    /// The blob is no message.
    #[error("stored form cannot be read: {0}")]
    Encoding(#[from] prost::DecodeError),
    /// A field is missing or has a value it cannot have.
    #[error("stored field {0} is missing or out of range")]
    Field(&'static str),
    /// An identifier is none.
    #[error("stored identifier: {0}")]
    Id(#[from] IdError),
}

fn open<M: Message + Default>(blob: &[u8]) -> Result<M, StoredError> {
    match blob.split_first() {
        Some((&VERSION, message)) => Ok(M::decode(message)?),
        other => Err(StoredError::Version(other.map(|(version, _)| *version))),
    }
}

fn number<N: Numbered>(number: i32, field: &'static str) -> Result<N, StoredError> {
    N::from_number(number).ok_or(StoredError::Field(field))
}

fn time_out(time: Option<messages::Time>, field: &'static str) -> Result<Timestamp, StoredError> {
    time.and_then(|time| from_parts(time.seconds, time.nanos))
        .ok_or(StoredError::Field(field))
}

fn time_out_optional(
    time: Option<messages::Time>,
    field: &'static str,
) -> Result<Option<Timestamp>, StoredError> {
    time.map(|time| time_out(Some(time), field)).transpose()
}

/// The 16 bytes of an id.
pub(crate) fn id_bytes(bytes: &[u8], field: &'static str) -> Result<[u8; 16], StoredError> {
    bytes.try_into().map_err(|_| StoredError::Field(field))
}

fn refs_in(writer: &mut Writer, tag: u32, refs: &Refs) {
    if *refs == Refs::default() {
        return;
    }
    writer.message(tag, |message| {
        message.bytes(1, &refs.campaign);
        message.bytes(2, &refs.distribution);
        message.bytes(3, &refs.class);
        message.bytes(4, &refs.serial_number);
        message.bytes(5, &refs.external_id);
    });
}

fn refs_out(refs: Option<messages::Refs>) -> Refs {
    refs.map_or_else(Refs::default, |refs| Refs {
        campaign: refs.campaign,
        distribution: refs.distribution,
        class: refs.class,
        serial_number: refs.serial_number,
        external_id: refs.external_id,
    })
}

fn wallet_in(writer: &mut Writer, tag: u32, wallet: Option<&Wallet>) {
    let Some(wallet) = wallet else { return };
    writer.message(tag, |message| {
        message.int(1, wallet.kind.number());
        message.bytes(2, &wallet.native);
        message.bytes(3, &wallet.device_os);
        message.bytes(4, &wallet.device_app);
    });
}

fn wallet_out(wallet: messages::Wallet) -> Result<Wallet, StoredError> {
    Ok(Wallet {
        kind: number(wallet.kind, "wallet.kind")?,
        native: wallet.native,
        device_os: wallet.device_os,
        device_app: wallet.device_app,
    })
}

fn redemption_in(writer: &mut Writer, tag: u32, redemption: Option<&Redemption>) {
    let Some(redemption) = redemption else { return };
    writer.message(tag, |message| {
        if let Some(count) = redemption.count {
            message.present_signed(1, count);
        }
        message.time_optional(2, redemption.time);
        message.bytes(3, &redemption.scanner);
    });
}

fn redemption_out(redemption: messages::Redemption) -> Result<Redemption, StoredError> {
    Ok(Redemption {
        count: redemption.count,
        time: time_out_optional(redemption.time, "redemption.time")?,
        scanner: redemption.scanner,
    })
}

fn auth_in(writer: &mut Writer, tag: u32, auth: &AuthVerdict) {
    writer.message(tag, |message| {
        message.int(1, auth.scheme.number());
        message.bytes(2, &auth.key_id);
        message.bytes(3, &auth.detail);
    });
}

fn auth_out(auth: Option<messages::Auth>) -> Result<AuthVerdict, StoredError> {
    let auth = auth.ok_or(StoredError::Field("auth"))?;
    Ok(AuthVerdict {
        scheme: number(auth.scheme, "auth.scheme")?,
        key_id: auth.key_id,
        detail: auth.detail,
    })
}

fn trace_in(writer: &mut Writer, tag: u32, trace: &TraceContext) {
    if *trace == TraceContext::default() {
        return;
    }
    writer.message(tag, |message| {
        message.bytes(1, &trace.traceparent);
        message.bytes(2, &trace.tracestate);
    });
}

fn trace_out(trace: Option<messages::Trace>) -> TraceContext {
    trace.map_or_else(TraceContext::default, |trace| TraceContext {
        traceparent: trace.traceparent,
        tracestate: trace.tracestate,
    })
}

fn key_out(key: &str) -> Result<InstallationKey, StoredError> {
    if key.is_empty() {
        return Ok(InstallationKey::Anonymous);
    }
    Ok(InstallationKey::Identified(VendorId::new(key)?))
}

/// Writes what an event's row does not have in columns.
pub(crate) fn event_blob(
    fact: &Fact,
    delivery: &Delivery,
    notes: &[String],
    effect: &Effect,
    time_suspect: bool,
) -> Vec<u8> {
    let mut writer = Writer::versioned(VERSION);
    writer.bytes(1, delivery.source.as_str());
    writer.bytes(2, &delivery.vendor);
    writer.bytes(3, &delivery.organization);
    writer.bytes(4, delivery.id.as_bytes());
    writer.time(5, delivery.receive_time);
    auth_in(&mut writer, 6, &delivery.auth);
    writer.bytes(7, &delivery.adapter_version);
    trace_in(&mut writer, 8, &delivery.trace);
    writer.each(9, notes);
    writer.unsigned(10, time_suspect);
    writer.message(11, |message| {
        message.int(1, effect.state_before.number());
        message.int(2, effect.state_after.number());
        message.each(3, effect.opened.iter().map(InstallationKey::as_str));
        message.each(4, effect.closed.iter().map(InstallationKey::as_str));
        message.unsigned(5, effect.late);
        message.unsigned(6, effect.changed);
    });
    writer.unsigned(12, fact.identity_version);
    writer.int(13, fact.identity_basis.number());
    writer.bytes(14, fact.pass.as_str());
    writer.int(15, fact.kind.number());
    writer.bytes(16, &fact.vendor_kind);
    writer.int(17, fact.assertion.number());
    writer.time(18, fact.occur_time);
    writer.int(19, fact.time_basis.number());
    if let Some(installation) = &fact.installation {
        writer.message(20, |message| {
            message.bytes(1, installation.id.as_str());
            message.int(2, installation.scope.number());
        });
    }
    wallet_in(&mut writer, 21, fact.wallet.as_ref());
    refs_in(&mut writer, 22, &fact.refs);
    redemption_in(&mut writer, 23, fact.redemption.as_ref());
    writer.map(24, &fact.attributes);
    writer.fixed(25, fact.content_digest);
    writer.finish()
}

/// Reads an event from its row; `personal` is `None`.
pub(crate) fn event_from(
    position: Position,
    id: EventId,
    record_time: Timestamp,
    blob: &[u8],
) -> Result<Event, StoredError> {
    let stored: messages::Event = open(blob)?;
    let effect = stored.effect.ok_or(StoredError::Field("effect"))?;
    let keys = |keys: &[String]| {
        keys.iter()
            .map(|key| key_out(key))
            .collect::<Result<Vec<_>, _>>()
    };
    Ok(Event {
        position,
        fact: Fact {
            id,
            identity_version: stored.identity_version,
            identity_basis: number(stored.identity_basis, "identity_basis")?,
            pass: VendorId::new(&stored.pass)?,
            kind: number(stored.kind, "kind")?,
            vendor_kind: stored.vendor_kind,
            assertion: number(stored.assertion, "assertion")?,
            occur_time: time_out(stored.occur_time, "occur_time")?,
            time_basis: number(stored.time_basis, "time_basis")?,
            installation: stored
                .installation
                .map(|installation| {
                    Ok::<_, StoredError>(InstallationRef {
                        id: VendorId::new(&installation.id)?,
                        scope: number(installation.scope, "installation.scope")?,
                    })
                })
                .transpose()?,
            wallet: stored.wallet.map(wallet_out).transpose()?,
            refs: refs_out(stored.refs),
            redemption: stored.redemption.map(redemption_out).transpose()?,
            attributes: stored.attributes,
            content_digest: stored.content_digest,
        },
        source: SourceUid::new(&stored.source)?,
        vendor: stored.vendor,
        organization: stored.organization,
        delivery: DeliveryId::from_bytes(id_bytes(&stored.delivery_id, "delivery_id")?),
        receive_time: time_out(stored.receive_time, "receive_time")?,
        record_time,
        auth: auth_out(stored.auth)?,
        adapter_version: stored.adapter_version,
        trace: trace_out(stored.trace),
        notes: stored.notes,
        effect: Effect {
            state_before: number(effect.state_before, "effect.state_before")?,
            state_after: number(effect.state_after, "effect.state_after")?,
            opened: keys(&effect.opened)?,
            closed: keys(&effect.closed)?,
            late: effect.late,
            changed: effect.changed,
        },
        time_suspect: stored.time_suspect,
        personal: None,
    })
}

/// Writes personal data; nothing at all if there is none.
pub(crate) fn personal_blob(personal: &Personal) -> Vec<u8> {
    if personal.is_empty() {
        return Vec::new();
    }
    let mut writer = Writer::versioned(VERSION);
    writer.bytes(1, &personal.display_name);
    writer.bytes(2, &personal.email_address);
    writer.map(3, &personal.ip_addresses);
    writer.map(4, &personal.user_agents);
    writer.map(5, &personal.position);
    writer.map(6, &personal.attributes);
    writer.finish()
}

/// Reads personal data; `None` if there is none.
pub(crate) fn personal_from(blob: &[u8]) -> Result<Option<Personal>, StoredError> {
    if blob.is_empty() {
        return Ok(None);
    }
    let stored: messages::Personal = open(blob)?;
    Ok(Some(Personal {
        display_name: stored.display_name,
        email_address: stored.email_address,
        ip_addresses: stored.ip_addresses,
        user_agents: stored.user_agents,
        position: stored.position,
        attributes: stored.attributes,
    }))
}

/// What a delivery's row holds besides its columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeliveryRest<P = VendorId> {
    /// The facts' passes and ids, in the order in which the delivery told them.
    pub(crate) events: Vec<(P, EventId)>,
    /// Facts that were known already.
    pub(crate) duplicate_facts: u32,
    /// Those that said something else.
    pub(crate) differing_duplicates: u32,
    /// Facts that the store refused.
    pub(crate) refused_facts: u32,
    /// Length of the raw body.
    pub(crate) body_bytes: u64,
}

/// Writes what a delivery's row does not have in columns. Of what was decoded it keeps the notes and a
/// control delivery's kind; the reason of an undecodable one is in its quarantine row.
pub(crate) fn delivery_blob<P: Borrow<VendorId>>(
    delivery: &Delivery,
    rest: &DeliveryRest<P>,
) -> Vec<u8> {
    let (notes, control_kind): (&[String], Option<&String>) = match &delivery.decoded {
        Decoded::Facts(facts) => (&facts.notes, None),
        Decoded::Control { vendor_kind } => (&[], Some(vendor_kind)),
        Decoded::Undecodable(_) => (&[], None),
    };
    let mut writer = Writer::versioned(VERSION);
    writer.bytes(1, &delivery.vendor);
    writer.bytes(2, &delivery.organization);
    writer.time(3, delivery.receive_time);
    writer.int(4, delivery.method.number());
    writer.bytes(5, &delivery.path);
    for (name, value) in &delivery.headers {
        writer.message(6, |message| {
            message.bytes(1, name);
            message.bytes(2, value);
        });
    }
    auth_in(&mut writer, 7, &delivery.auth);
    writer.bytes(8, &delivery.adapter_version);
    trace_in(&mut writer, 9, &delivery.trace);
    writer.each(10, notes);
    if let Some(kind) = control_kind {
        writer.present(11, kind);
    }
    let mut last_pass = None;
    for (pass, id) in &rest.events {
        let pass: &VendorId = pass.borrow();
        // A pass is written once for all facts in a row about it.
        let repeated = last_pass.replace(pass) == Some(pass);
        writer.message(12, |message| {
            message.bytes(1, if repeated { "" } else { pass.as_str() });
            message.bytes(2, id.as_bytes());
        });
    }
    writer.unsigned(13, rest.duplicate_facts);
    writer.unsigned(14, rest.differing_duplicates);
    writer.unsigned(15, rest.refused_facts);
    writer.unsigned(16, rest.body_bytes);
    writer.finish()
}

/// Reads a delivery from its row: no body, no facts; `undecodable` if it stands in quarantine.
pub(crate) fn delivery_from(
    id: DeliveryId,
    source: SourceUid,
    undecodable: Option<Decoded>,
    blob: &[u8],
) -> Result<(Delivery, DeliveryRest), StoredError> {
    let stored: messages::Delivery = open(blob)?;
    let mut events: Vec<(VendorId, EventId)> = Vec::with_capacity(stored.facts.len());
    for fact in stored.facts {
        let pass = match events.last() {
            Some((pass, _)) if fact.pass.is_empty() => pass.clone(),
            _ => VendorId::new(&fact.pass)?,
        };
        events.push((
            pass,
            EventId::from_bytes(id_bytes(&fact.event_id, "facts.event_id")?),
        ));
    }
    let decoded = match (undecodable, stored.control_kind) {
        (Some(undecodable), _) => undecodable,
        (None, Some(vendor_kind)) => Decoded::Control { vendor_kind },
        (None, None) => Decoded::Facts(Box::new(DecodedFacts {
            notes: stored.notes,
            ..DecodedFacts::default()
        })),
    };
    let delivery = Delivery {
        id,
        source,
        vendor: stored.vendor,
        organization: stored.organization,
        receive_time: time_out(stored.receive_time, "receive_time")?,
        method: number::<Method>(stored.method, "method")?,
        path: stored.path,
        headers: stored
            .headers
            .into_iter()
            .map(|header| (header.name, header.value))
            .collect(),
        body: Vec::new(),
        auth: auth_out(stored.auth)?,
        adapter_version: stored.adapter_version,
        trace: trace_out(stored.trace),
        decoded,
    };
    let rest = DeliveryRest {
        events,
        duplicate_facts: stored.duplicate_facts,
        differing_duplicates: stored.differing_duplicates,
        refused_facts: stored.refused_facts,
        body_bytes: stored.body_bytes,
    };
    Ok((delivery, rest))
}

/// The passes and ids of a delivery's facts, as its record names them.
pub(crate) fn events_of(source: &SourceUid, rest: &DeliveryRest) -> Vec<(PassKey, EventId)> {
    rest.events
        .iter()
        .map(|(pass, id)| {
            (
                PassKey {
                    source: source.clone(),
                    pass: pass.clone(),
                },
                *id,
            )
        })
        .collect()
}
