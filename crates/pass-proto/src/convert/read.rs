//! What readers get: events, passes and deliveries for the wire.

use std::sync::Arc;

use pass_domain::cursor::Cursor;
use pass_domain::delivery::Delivery;
use pass_domain::event::{Effect, Event};
use pass_domain::fold::{InstallationKey, PassState};
use pass_domain::ids::{DeliveryId, EventId, IdError, PassKey};

use super::ingest::{
    auth_to_wire, headers_to_wire, installation_to_wire, personal_to_wire, redemption_to_wire,
    refs_to_wire, trace_to_wire, wallet_message,
};
use super::time_to_wire;
use super::words::{assertion_to_wire, identity_basis_to_wire, scope_to_wire, time_basis_to_wire};
use crate::v1;

/// An event's resource name.
#[must_use]
pub fn event_name(pass: &PassKey, id: EventId) -> String {
    format!("{pass}/events/{id}")
}

/// Reads an event's resource name.
///
/// # Errors
/// If it has not the form `sources/{source}/passes/{pass}/events/{event}`.
pub fn parse_event_name(name: &str) -> Result<(PassKey, EventId), IdError> {
    let form = IdError::Form {
        what: "event name",
        form: "sources/{source}/passes/{pass}/events/{event}",
    };
    let (pass, id) = name.rsplit_once("/events/").ok_or(form)?;
    Ok((pass.parse()?, id.parse()?))
}

/// Reads a delivery's resource name.
///
/// # Errors
/// If it has not the form `deliveries/{delivery}`.
pub fn parse_delivery_name(name: &str) -> Result<DeliveryId, IdError> {
    let form = IdError::Form {
        what: "delivery name",
        form: "deliveries/{delivery}",
    };
    name.strip_prefix("deliveries/").ok_or(form)?.parse()
}

/// An event for the wire, in the log of the given epoch.
#[must_use]
pub fn event_to_wire(event: &Event, epoch: u64) -> v1::PassEvent {
    event_into_wire(event.clone(), epoch)
}

/// The same without copying any text: the hot path of catching up.
#[must_use]
pub fn event_into_wire(event: Event, epoch: u64) -> v1::PassEvent {
    let pass = event.pass_key().to_string();
    let fact = event.fact;
    let id = fact.id.to_string();
    v1::PassEvent {
        name: format!("{pass}/events/{id}"),
        id,
        pass,
        source: event.source.to_string(),
        vendor: event.vendor,
        organization: event.organization,
        kind: fact.kind.number(),
        vendor_kind: fact.vendor_kind,
        assertion: assertion_to_wire(fact.assertion),
        occur_time: Some(time_to_wire(fact.occur_time)),
        occur_time_basis: time_basis_to_wire(fact.time_basis),
        time_suspect: event.time_suspect,
        receive_time: Some(time_to_wire(event.receive_time)),
        record_time: Some(time_to_wire(event.record_time)),
        cursor: Cursor::of(epoch, event.position, &fact.id).to_string(),
        installation: fact.installation.map(installation_to_wire),
        wallet: fact.wallet.map(wallet_message),
        refs: refs_to_wire(fact.refs),
        redemption: fact.redemption.map(redemption_to_wire),
        attributes: fact.attributes,
        personal: event
            .personal
            .map(Arc::unwrap_or_clone)
            .and_then(personal_to_wire),
        effect: Some(effect_to_wire(&event.effect)),
        identity_version: i32::try_from(fact.identity_version).unwrap_or(i32::MAX),
        identity_basis: identity_basis_to_wire(fact.identity_basis),
        delivery: format!("deliveries/{}", event.delivery),
        auth: Some(auth_to_wire(event.auth)),
        adapter_version: event.adapter_version,
        trace: trace_to_wire(event.trace),
        notes: event.notes,
    }
}

fn effect_to_wire(effect: &Effect) -> v1::EventEffect {
    let ids = |keys: &[InstallationKey]| keys.iter().map(|key| key.as_str().to_owned()).collect();
    v1::EventEffect {
        changed: effect.changed,
        state_before: effect.state_before.number(),
        state_after: effect.state_after.number(),
        opened_installations: ids(&effect.opened),
        closed_installations: ids(&effect.closed),
        late: effect.late,
    }
}

/// A pass as the store gives it.
#[derive(Clone, Copy, Debug)]
pub struct PassView<'a> {
    /// Which pass.
    pub key: &'a PassKey,
    /// The vendor's name.
    pub vendor: &'a str,
    /// The organization.
    pub organization: &'a str,
    /// What is known of it.
    pub state: &'a PassState,
    /// Digest of `state`.
    pub digest: u64,
    /// Cursor of its last event, if it has one.
    pub cursor: Option<Cursor>,
}

/// A pass for the wire.
#[must_use]
pub fn pass_to_wire(pass: PassView<'_>) -> v1::Pass {
    let state = pass.state;
    let fold = &state.fold;
    let snapshot = state.snapshot.as_ref();
    v1::Pass {
        name: pass.key.to_string(),
        source: pass.key.source.to_string(),
        vendor_pass_id: pass.key.pass.to_string(),
        vendor: pass.vendor.to_owned(),
        organization: pass.organization.to_owned(),
        state: state.state().number(),
        voided: state.voided(),
        installations: fold
            .installations
            .iter()
            .map(|installation| v1::Installation {
                id: installation.key.as_str().to_owned(),
                scope: installation.scope.map_or(0, scope_to_wire),
                wallet: installation.wallet.clone().map(wallet_message),
                open: installation.open,
                open_time: installation.open_time.map(time_to_wire),
                close_time: installation.close_time.map(time_to_wire),
            })
            .collect(),
        installed_count: i32::try_from(fold.open_installations().count()).unwrap_or(i32::MAX),
        installations_uncertain: fold.installations_uncertain,
        order_ambiguous: fold.order_ambiguous,
        kinds: fold
            .kinds
            .iter()
            .map(|(kind, times)| v1::KindSummary {
                kind: kind.number(),
                first_time: Some(time_to_wire(times.first_time)),
                last_time: Some(time_to_wire(times.last_time)),
                count: i64::try_from(times.count).unwrap_or(i64::MAX),
            })
            .collect(),
        redeemed_count: state.redeemed_count(),
        last_redemption: fold.last_redemption.clone().map(redemption_to_wire),
        vendor_status: snapshot
            .and_then(|s| s.vendor_status.as_ref())
            .map(|status| v1::VendorStatus {
                number: status.number,
                name: status.name.clone(),
                attained: status.attained.clone(),
            }),
        vendor_update_time: snapshot.map(|s| time_to_wire(s.update_time)),
        vendor_create_time: snapshot.and_then(|s| s.create_time).map(time_to_wire),
        refs: refs_to_wire(state.refs()),
        revision: i64::try_from(fold.event_count()).unwrap_or(i64::MAX),
        etag: format!("\"{:016x}\"", pass.digest),
        cursor: pass
            .cursor
            .map(|cursor| cursor.to_string())
            .unwrap_or_default(),
    }
}

/// What of a delivery is the same wherever it is shown: everything the store adds is left at its default.
#[must_use]
pub fn delivery_view(delivery: &Delivery) -> v1::Delivery {
    v1::Delivery {
        name: format!("deliveries/{}", delivery.id),
        source: delivery.source.to_string(),
        vendor: delivery.vendor.clone(),
        organization: delivery.organization.clone(),
        receive_time: Some(time_to_wire(delivery.receive_time)),
        method: delivery.method.name().to_owned(),
        path: delivery.path.clone(),
        headers: headers_to_wire(delivery.headers.clone()),
        body: delivery.body.clone().into(),
        auth: Some(auth_to_wire(delivery.auth.clone())),
        adapter_version: delivery.adapter_version.clone(),
        trace: trace_to_wire(delivery.trace.clone()),
        ..v1::Delivery::default()
    }
}
