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

use pass_domain::Timestamp;
use pass_domain::delivery::{AuthVerdict, Decoded, DecodedFacts, Delivery, Method, TraceContext};
use pass_domain::event::{Effect, Event, Position};
use pass_domain::fact::{Fact, InstallationRef, Personal, Redemption, Refs, Wallet};
use pass_domain::fold::InstallationKey;
use pass_domain::ids::{DeliveryId, EventId, IdError, PassKey, SourceUid, VendorId};
use pass_domain::time::{from_parts, to_parts};
use prost::Message;

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

fn seal(message: &impl Message) -> Vec<u8> {
    let mut blob = Vec::with_capacity(1 + message.encoded_len());
    blob.push(VERSION);
    message.encode(&mut blob).expect("a vector grows");
    blob
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

fn time_in(time: Timestamp) -> messages::Time {
    let (seconds, nanos) = to_parts(time);
    messages::Time { seconds, nanos }
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

fn refs_in(refs: &Refs) -> Option<messages::Refs> {
    (*refs != Refs::default()).then(|| messages::Refs {
        campaign: refs.campaign.clone(),
        distribution: refs.distribution.clone(),
        class: refs.class.clone(),
        serial_number: refs.serial_number.clone(),
        external_id: refs.external_id.clone(),
    })
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

fn wallet_in(wallet: &Wallet) -> messages::Wallet {
    messages::Wallet {
        kind: wallet.kind.number(),
        native: wallet.native.clone(),
        device_os: wallet.device_os.clone(),
        device_app: wallet.device_app.clone(),
    }
}

fn wallet_out(wallet: messages::Wallet) -> Result<Wallet, StoredError> {
    Ok(Wallet {
        kind: number(wallet.kind, "wallet.kind")?,
        native: wallet.native,
        device_os: wallet.device_os,
        device_app: wallet.device_app,
    })
}

fn redemption_in(redemption: &Redemption) -> messages::Redemption {
    messages::Redemption {
        count: redemption.count,
        time: redemption.time.map(time_in),
        scanner: redemption.scanner.clone(),
    }
}

fn redemption_out(redemption: messages::Redemption) -> Result<Redemption, StoredError> {
    Ok(Redemption {
        count: redemption.count,
        time: time_out_optional(redemption.time, "redemption.time")?,
        scanner: redemption.scanner,
    })
}

fn auth_in(auth: &AuthVerdict) -> messages::Auth {
    messages::Auth {
        scheme: auth.scheme.number(),
        key_id: auth.key_id.clone(),
        detail: auth.detail.clone(),
    }
}

fn auth_out(auth: Option<messages::Auth>) -> Result<AuthVerdict, StoredError> {
    let auth = auth.ok_or(StoredError::Field("auth"))?;
    Ok(AuthVerdict {
        scheme: number(auth.scheme, "auth.scheme")?,
        key_id: auth.key_id,
        detail: auth.detail,
    })
}

fn trace_in(trace: &TraceContext) -> Option<messages::Trace> {
    (*trace != TraceContext::default()).then(|| messages::Trace {
        traceparent: trace.traceparent.clone(),
        tracestate: trace.tracestate.clone(),
    })
}

fn trace_out(trace: Option<messages::Trace>) -> TraceContext {
    trace.map_or_else(TraceContext::default, |trace| TraceContext {
        traceparent: trace.traceparent,
        tracestate: trace.tracestate,
    })
}

fn key_in(key: &InstallationKey) -> String {
    key.as_str().to_owned()
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
    seal(&messages::Event {
        source: delivery.source.as_str().to_owned(),
        vendor: delivery.vendor.clone(),
        organization: delivery.organization.clone(),
        delivery_id: delivery.id.as_bytes().to_vec(),
        receive_time: Some(time_in(delivery.receive_time)),
        auth: Some(auth_in(&delivery.auth)),
        adapter_version: delivery.adapter_version.clone(),
        trace: trace_in(&delivery.trace),
        notes: notes.to_vec(),
        time_suspect,
        effect: Some(messages::Effect {
            state_before: effect.state_before.number(),
            state_after: effect.state_after.number(),
            opened: effect.opened.iter().map(key_in).collect(),
            closed: effect.closed.iter().map(key_in).collect(),
            late: effect.late,
            changed: effect.changed,
        }),
        identity_version: fact.identity_version,
        identity_basis: fact.identity_basis.number(),
        pass: fact.pass.as_str().to_owned(),
        kind: fact.kind.number(),
        vendor_kind: fact.vendor_kind.clone(),
        assertion: fact.assertion.number(),
        occur_time: Some(time_in(fact.occur_time)),
        time_basis: fact.time_basis.number(),
        installation: fact
            .installation
            .as_ref()
            .map(|installation| messages::InstallationRef {
                id: installation.id.as_str().to_owned(),
                scope: installation.scope.number(),
            }),
        wallet: fact.wallet.as_ref().map(wallet_in),
        refs: refs_in(&fact.refs),
        redemption: fact.redemption.as_ref().map(redemption_in),
        attributes: fact.attributes.clone(),
        content_digest: fact.content_digest,
    })
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
    seal(&messages::Personal {
        display_name: personal.display_name.clone(),
        email_address: personal.email_address.clone(),
        ip_addresses: personal.ip_addresses.clone(),
        user_agents: personal.user_agents.clone(),
        position: personal.position.clone(),
        attributes: personal.attributes.clone(),
    })
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
pub(crate) struct DeliveryRest {
    /// The facts' passes and ids, in the order in which the delivery told them.
    pub(crate) events: Vec<(VendorId, EventId)>,
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
pub(crate) fn delivery_blob(delivery: &Delivery, rest: &DeliveryRest) -> Vec<u8> {
    let (notes, control_kind): (&[String], Option<&String>) = match &delivery.decoded {
        Decoded::Facts(facts) => (&facts.notes, None),
        Decoded::Control { vendor_kind } => (&[], Some(vendor_kind)),
        Decoded::Undecodable(_) => (&[], None),
    };
    let mut last_pass = None;
    seal(&messages::Delivery {
        vendor: delivery.vendor.clone(),
        organization: delivery.organization.clone(),
        receive_time: Some(time_in(delivery.receive_time)),
        method: delivery.method.number(),
        path: delivery.path.clone(),
        headers: delivery
            .headers
            .iter()
            .map(|(name, value)| messages::Header {
                name: name.clone(),
                value: value.clone(),
            })
            .collect(),
        auth: Some(auth_in(&delivery.auth)),
        adapter_version: delivery.adapter_version.clone(),
        trace: trace_in(&delivery.trace),
        notes: notes.to_vec(),
        control_kind: control_kind.cloned(),
        facts: rest
            .events
            .iter()
            .map(|(pass, id)| {
                // A pass is written once for all facts in a row about it.
                let repeated = last_pass.replace(pass) == Some(pass);
                messages::FactOf {
                    pass: if repeated {
                        String::new()
                    } else {
                        pass.as_str().to_owned()
                    },
                    event_id: id.as_bytes().to_vec(),
                }
            })
            .collect(),
        duplicate_facts: rest.duplicate_facts,
        differing_duplicates: rest.differing_duplicates,
        refused_facts: rest.refused_facts,
        body_bytes: rest.body_bytes,
    })
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
