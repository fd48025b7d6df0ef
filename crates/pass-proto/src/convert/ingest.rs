//! Deliveries between gateway and store.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pass_domain::delivery::{
    AuthScheme, AuthVerdict, Decoded, DecodedFacts, Delivery, Method, TraceContext, Undecodable,
    UndecodableReason,
};
use pass_domain::fact::{
    Fact, InstallationRef, Personal, Redemption, Refs, Snapshot, VendorStatus, Wallet,
};
use pass_domain::ids::{DeliveryId, EventId, SourceUid, VendorId};
use pass_domain::kind::Kind;
use pass_domain::limits::{
    ATTRIBUTE_NAME_BYTES_MAX, ATTRIBUTES_MAX, FACTS_PER_DELIVERY_MAX, HEADERS_MAX, NOTES_MAX,
    PATH_BYTES_MAX, TEXT_BYTES_MAX,
};

use super::words::{
    assertion_from_wire, assertion_to_wire, auth_scheme_from_wire, auth_scheme_to_wire,
    identity_basis_from_wire, identity_basis_to_wire, method_from_wire, reason_from_wire,
    reason_to_wire, scope_from_wire, scope_to_wire, time_basis_from_wire, time_basis_to_wire,
    wallet_from_wire, wallet_to_wire,
};
use super::{time_from_wire, time_to_wire};
use crate::v1;

/// A delivery for the wire, with sequence 0.
#[must_use]
pub fn delivery_to_wire(delivery: &Delivery) -> v1::IngestDelivery {
    delivery_into_wire(delivery.clone())
}

/// The same without copying any text: the hot path of the gateway.
#[must_use]
pub fn delivery_into_wire(delivery: Delivery) -> v1::IngestDelivery {
    let decoded = match delivery.decoded {
        Decoded::Facts(facts) => v1::ingest_delivery::Decoded::Facts(facts_to_wire(*facts)),
        Decoded::Control { vendor_kind } => v1::ingest_delivery::Decoded::Control(vendor_kind),
        Decoded::Undecodable(undecodable) => {
            v1::ingest_delivery::Decoded::Undecodable(v1::UndecodableDelivery {
                reason: reason_to_wire(undecodable.reason),
                detail: undecodable.detail,
            })
        }
    };
    v1::IngestDelivery {
        sequence: 0,
        id: delivery.id.as_bytes().to_vec(),
        source: delivery.source.to_string(),
        vendor: delivery.vendor,
        organization: delivery.organization,
        receive_time: Some(time_to_wire(delivery.receive_time)),
        method: delivery.method.name().to_owned(),
        path: delivery.path,
        headers: headers_to_wire(delivery.headers),
        body: delivery.body.into(),
        auth: Some(auth_to_wire(delivery.auth)),
        adapter_version: delivery.adapter_version,
        trace: trace_to_wire(delivery.trace),
        decoded: Some(decoded),
    }
}

/// What to use where a delivery on the wire lacks what nothing can be recorded without.
#[derive(Clone, Copy, Debug)]
pub struct Fallback {
    /// The id, if it is not 16 bytes.
    pub id: DeliveryId,
    /// The receive time, if it is missing or out of range.
    pub receive_time: Timestamp,
}

/// A delivery from the wire. Never fails, so that a delivery that is wrong for ever blocks nothing: what is
/// wrong with it becomes the reason why it is quarantined, and its bytes are kept.
#[must_use]
pub fn delivery_from_wire(wire: v1::IngestDelivery, fallback: Fallback) -> Delivery {
    let mut fault: Option<String> = None;
    let mut note = |text: String| {
        fault.get_or_insert(text);
    };
    let id = <[u8; 16]>::try_from(wire.id.as_slice()).map_or_else(
        |_| {
            note("id must be 16 bytes".to_owned());
            fallback.id
        },
        DeliveryId::from_bytes,
    );
    let source = SourceUid::new(&wire.source).unwrap_or_else(|error| {
        note(format!("source: {error}"));
        SourceUid::new("invalid").expect("a valid uid")
    });
    let receive_time = wire
        .receive_time
        .as_ref()
        .and_then(time_from_wire)
        .unwrap_or_else(|| {
            note("receive_time is missing or out of range".to_owned());
            fallback.receive_time
        });
    let method = method_from_wire(&wire.method).unwrap_or_else(|| {
        note("method must be POST, PUT or DELETE".to_owned());
        Method::Post
    });
    let auth = wire.auth.and_then(auth_from_wire).unwrap_or_else(|| {
        note("auth is missing or has an unknown scheme".to_owned());
        AuthVerdict {
            scheme: AuthScheme::None,
            key_id: String::new(),
            detail: String::new(),
        }
    });
    let decoded = match wire.decoded {
        Some(v1::ingest_delivery::Decoded::Facts(facts)) => match facts_from_wire(facts) {
            Ok(facts) => Decoded::Facts(Box::new(facts)),
            Err(text) => refused(text),
        },
        Some(v1::ingest_delivery::Decoded::Control(vendor_kind)) => Decoded::Control {
            vendor_kind: cut(vendor_kind),
        },
        Some(v1::ingest_delivery::Decoded::Undecodable(undecodable)) => {
            Decoded::Undecodable(Undecodable {
                reason: reason_from_wire(undecodable.reason)
                    .unwrap_or(UndecodableReason::StoreRefused),
                detail: cut(undecodable.detail),
            })
        }
        None => refused("decoded is missing".to_owned()),
    };
    let headers = wire
        .headers
        .into_iter()
        .take(HEADERS_MAX)
        .map(|h| (cut(h.name), cut(h.value)))
        .collect();
    Delivery {
        id,
        source,
        vendor: cut(wire.vendor),
        organization: cut(wire.organization),
        receive_time,
        method,
        path: cut_to(wire.path, PATH_BYTES_MAX),
        headers,
        body: wire.body.to_vec(),
        auth,
        adapter_version: cut(wire.adapter_version),
        trace: wire
            .trace
            .map(|t| TraceContext {
                traceparent: cut(t.traceparent),
                tracestate: cut(t.tracestate),
            })
            .unwrap_or_default(),
        decoded: fault.map_or(decoded, refused),
    }
}

fn refused(detail: String) -> Decoded {
    Decoded::Undecodable(Undecodable {
        reason: UndecodableReason::StoreRefused,
        detail: cut(detail),
    })
}

/// A text without NUL, which one of the databases cannot hold, and within the common bound.
fn cut(text: String) -> String {
    cut_to(text, TEXT_BYTES_MAX)
}

fn cut_to(mut text: String, bytes_max: usize) -> String {
    if text.contains('\0') {
        text = text.replace('\0', "\u{fffd}");
    }
    if text.len() > bytes_max {
        let mut at = bytes_max;
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        text.truncate(at);
    }
    text
}

fn cut_map(map: BTreeMap<String, String>) -> BTreeMap<String, String> {
    map.into_iter()
        .take(ATTRIBUTES_MAX)
        .map(|(name, value)| (cut_to(name, ATTRIBUTE_NAME_BYTES_MAX), cut(value)))
        .collect()
}

fn facts_to_wire(facts: DecodedFacts) -> v1::DecodedFacts {
    v1::DecodedFacts {
        facts: facts.facts.into_iter().map(fact_to_wire).collect(),
        snapshot: facts.snapshot.map(snapshot_to_wire),
        personal: personal_to_wire(facts.personal),
        notes: facts.notes,
    }
}

fn facts_from_wire(wire: v1::DecodedFacts) -> Result<DecodedFacts, String> {
    if wire.facts.len() > FACTS_PER_DELIVERY_MAX {
        return Err(format!(
            "facts: at most {FACTS_PER_DELIVERY_MAX} are allowed, not {}",
            wire.facts.len()
        ));
    }
    let facts = wire
        .facts
        .into_iter()
        .enumerate()
        .map(|(at, fact)| fact_from_wire(fact).map_err(|text| format!("facts[{at}].{text}")))
        .collect::<Result<_, _>>()?;
    Ok(DecodedFacts {
        facts,
        snapshot: wire
            .snapshot
            .map(snapshot_from_wire)
            .transpose()
            .map_err(|text| format!("snapshot.{text}"))?,
        personal: wire.personal.map(personal_from_wire).unwrap_or_default(),
        notes: wire.notes.into_iter().take(NOTES_MAX).map(cut).collect(),
    })
}

fn fact_to_wire(fact: Fact) -> v1::Fact {
    v1::Fact {
        id: fact.id.as_bytes().to_vec(),
        identity_version: i32::try_from(fact.identity_version).unwrap_or(i32::MAX),
        identity_basis: identity_basis_to_wire(fact.identity_basis),
        vendor_pass_id: fact.pass.to_string(),
        kind: fact.kind.number(),
        vendor_kind: fact.vendor_kind,
        assertion: assertion_to_wire(fact.assertion),
        occur_time: Some(time_to_wire(fact.occur_time)),
        occur_time_basis: time_basis_to_wire(fact.time_basis),
        installation: fact.installation.map(installation_to_wire),
        wallet: fact.wallet.map(wallet_message),
        refs: refs_to_wire(fact.refs),
        redemption: fact.redemption.map(redemption_to_wire),
        attributes: fact.attributes,
        content_digest: fact.content_digest,
    }
}

fn fact_from_wire(wire: v1::Fact) -> Result<Fact, String> {
    let id =
        <[u8; 16]>::try_from(wire.id.as_slice()).map_err(|_| "id must be 16 bytes".to_owned())?;
    let time = wire.occur_time.as_ref().and_then(time_from_wire);
    Ok(Fact {
        id: EventId::from_bytes(id),
        identity_version: u32::try_from(wire.identity_version)
            .map_err(|_| "identity_version is negative".to_owned())?,
        identity_basis: identity_basis_from_wire(wire.identity_basis)
            .ok_or("identity_basis is unknown")?,
        pass: VendorId::new(&wire.vendor_pass_id)
            .map_err(|error| format!("vendor_pass_id: {error}"))?,
        kind: Kind::from_number(wire.kind).ok_or("kind is unknown")?,
        vendor_kind: cut(wire.vendor_kind),
        assertion: assertion_from_wire(wire.assertion).ok_or("assertion is unknown")?,
        occur_time: time.ok_or("occur_time is missing or out of range")?,
        time_basis: time_basis_from_wire(wire.occur_time_basis)
            .ok_or("occur_time_basis is unknown")?,
        installation: wire.installation.map(installation_from_wire).transpose()?,
        wallet: wire.wallet.map(wallet_from_message).transpose()?,
        refs: wire.refs.map(refs_from_wire).unwrap_or_default(),
        redemption: wire.redemption.map(redemption_from_wire).transpose()?,
        attributes: cut_map(wire.attributes),
        content_digest: wire.content_digest,
    })
}

pub(super) fn installation_to_wire(installation: InstallationRef) -> v1::InstallationRef {
    v1::InstallationRef {
        id: installation.id.to_string(),
        scope: scope_to_wire(installation.scope),
    }
}

fn installation_from_wire(wire: v1::InstallationRef) -> Result<InstallationRef, String> {
    Ok(InstallationRef {
        id: VendorId::new(&wire.id).map_err(|error| format!("installation.id: {error}"))?,
        scope: scope_from_wire(wire.scope).ok_or("installation.scope is unknown")?,
    })
}

pub(super) fn wallet_message(wallet: Wallet) -> v1::Wallet {
    v1::Wallet {
        kind: wallet_to_wire(wallet.kind),
        native: wallet.native,
        device_os: wallet.device_os,
        device_app: wallet.device_app,
    }
}

fn wallet_from_message(wire: v1::Wallet) -> Result<Wallet, String> {
    Ok(Wallet {
        kind: wallet_from_wire(wire.kind).ok_or("wallet.kind is unknown")?,
        native: cut(wire.native),
        device_os: cut(wire.device_os),
        device_app: cut(wire.device_app),
    })
}

pub(super) fn refs_to_wire(refs: Refs) -> Option<v1::PassRefs> {
    (refs != Refs::default()).then_some(v1::PassRefs {
        campaign: refs.campaign,
        distribution: refs.distribution,
        class: refs.class,
        serial_number: refs.serial_number,
        external_id: refs.external_id,
    })
}

fn refs_from_wire(wire: v1::PassRefs) -> Refs {
    Refs {
        campaign: cut(wire.campaign),
        distribution: cut(wire.distribution),
        class: cut(wire.class),
        serial_number: cut(wire.serial_number),
        external_id: cut(wire.external_id),
    }
}

pub(super) fn redemption_to_wire(redemption: Redemption) -> v1::Redemption {
    v1::Redemption {
        count: redemption.count,
        redeem_time: redemption.time.map(time_to_wire),
        scanner: redemption.scanner,
    }
}

fn redemption_from_wire(wire: v1::Redemption) -> Result<Redemption, String> {
    let time = match &wire.redeem_time {
        Some(time) => Some(time_from_wire(time).ok_or("redemption.redeem_time is out of range")?),
        None => None,
    };
    Ok(Redemption {
        count: wire.count,
        time,
        scanner: cut(wire.scanner),
    })
}

pub(super) fn personal_to_wire(personal: Personal) -> Option<v1::PersonalData> {
    (!personal.is_empty()).then_some(v1::PersonalData {
        display_name: personal.display_name,
        email_address: personal.email_address,
        ip_addresses: personal.ip_addresses,
        user_agents: personal.user_agents,
        position: personal.position,
        attributes: personal.attributes,
    })
}

fn personal_from_wire(wire: v1::PersonalData) -> Personal {
    Personal {
        display_name: cut(wire.display_name),
        email_address: cut(wire.email_address),
        ip_addresses: cut_map(wire.ip_addresses),
        user_agents: cut_map(wire.user_agents),
        position: cut_map(wire.position),
        attributes: cut_map(wire.attributes),
    }
}

fn snapshot_to_wire(snapshot: Snapshot) -> v1::Snapshot {
    let status = snapshot.vendor_status;
    v1::Snapshot {
        vendor_pass_id: snapshot.pass.to_string(),
        update_time: Some(time_to_wire(snapshot.update_time)),
        content_digest: snapshot.content_digest,
        voided: snapshot.voided,
        redeemed_count: snapshot.redeemed_count,
        has_status: status.is_some(),
        status_number: status.as_ref().and_then(|s| s.number),
        status_name: status.as_ref().map(|s| s.name.clone()).unwrap_or_default(),
        attained: status.map(|s| s.attained).unwrap_or_default(),
        create_time: snapshot.create_time.map(time_to_wire),
        refs: refs_to_wire(snapshot.refs),
    }
}

fn snapshot_from_wire(wire: v1::Snapshot) -> Result<Snapshot, String> {
    let time = wire.update_time.as_ref().and_then(time_from_wire);
    let create_time = match &wire.create_time {
        Some(time) => Some(time_from_wire(time).ok_or("create_time is out of range")?),
        None => None,
    };
    Ok(Snapshot {
        pass: VendorId::new(&wire.vendor_pass_id)
            .map_err(|error| format!("vendor_pass_id: {error}"))?,
        update_time: time.ok_or("update_time is missing or out of range")?,
        content_digest: wire.content_digest,
        voided: wire.voided,
        redeemed_count: wire.redeemed_count,
        vendor_status: wire.has_status.then(|| VendorStatus {
            number: wire.status_number,
            name: cut(wire.status_name),
            attained: wire
                .attained
                .into_iter()
                .take(ATTRIBUTES_MAX)
                .map(cut)
                .collect(),
        }),
        create_time,
        refs: wire.refs.map(refs_from_wire).unwrap_or_default(),
    })
}

pub(super) fn auth_to_wire(auth: AuthVerdict) -> v1::AuthVerdict {
    v1::AuthVerdict {
        scheme: auth_scheme_to_wire(auth.scheme),
        key_id: auth.key_id,
        detail: auth.detail,
    }
}

fn auth_from_wire(wire: v1::AuthVerdict) -> Option<AuthVerdict> {
    Some(AuthVerdict {
        scheme: auth_scheme_from_wire(wire.scheme)?,
        key_id: cut(wire.key_id),
        detail: cut(wire.detail),
    })
}

pub(super) fn trace_to_wire(trace: TraceContext) -> Option<v1::TraceContext> {
    (!trace.traceparent.is_empty()).then_some(v1::TraceContext {
        traceparent: trace.traceparent,
        tracestate: trace.tracestate,
    })
}

pub(super) fn headers_to_wire(headers: Vec<(String, String)>) -> Vec<v1::Header> {
    headers
        .into_iter()
        .map(|(name, value)| v1::Header { name, value })
        .collect()
}

#[cfg(test)]
mod tests;
