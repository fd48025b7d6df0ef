//! The stored form of a pass.

use pass_domain::fact::{Snapshot, VendorStatus};
use pass_domain::fold::{FactKey, Fold, Installation, KindTimes, PassState};
use pass_domain::ids::{EventId, VendorId};
use pass_domain::kind::Kind;
use prost::Message;

use super::numbers::Numbered;
use super::{
    StoredError, id_bytes, key_in, key_out, messages, number, open, redemption_in, redemption_out,
    refs_in, refs_out, seal, time_in, time_out, time_out_optional, wallet_in, wallet_out,
};

/// The state of a pass in bytes; equal states give equal bytes.
pub(crate) fn state_bytes(state: &PassState) -> Vec<u8> {
    let fold = &state.fold;
    messages::PassState {
        last: fold.last.map(|last| messages::FactKey {
            occur_time: Some(time_in(last.occur_time)),
            basis_rank: u32::from(last.basis_rank),
            kind_rank: u32::from(last.kind_rank),
            id: last.id.as_bytes().to_vec(),
        }),
        kinds: fold
            .kinds
            .iter()
            .map(|(kind, times)| messages::KindTimes {
                kind: kind.number(),
                first_time: Some(time_in(times.first_time)),
                last_time: Some(time_in(times.last_time)),
                count: times.count,
            })
            .collect(),
        installations: fold
            .installations
            .iter()
            .map(|installation| messages::Installation {
                key: key_in(&installation.key),
                scope: installation.scope.map(|scope| scope.number()),
                wallet: installation.wallet.as_ref().map(wallet_in),
                open: installation.open,
                open_time: installation.open_time.map(time_in),
                close_time: installation.close_time.map(time_in),
                transition_time: Some(time_in(installation.transition_time)),
                transition_basis: installation.transition_basis.number(),
            })
            .collect(),
        had_installation: fold.had_installation,
        validity: fold.validity.map(|(kind, time)| messages::Validity {
            kind: kind.number(),
            time: Some(time_in(time)),
        }),
        last_redemption: fold.last_redemption.as_ref().map(redemption_in),
        refs: refs_in(&fold.refs),
        installations_uncertain: fold.installations_uncertain,
        order_ambiguous: fold.order_ambiguous,
        snapshot: state.snapshot.as_ref().map(|snapshot| messages::Snapshot {
            pass: snapshot.pass.as_str().to_owned(),
            update_time: Some(time_in(snapshot.update_time)),
            content_digest: snapshot.content_digest,
            voided: snapshot.voided,
            redeemed_count: snapshot.redeemed_count,
            vendor_status: snapshot
                .vendor_status
                .as_ref()
                .map(|status| messages::VendorStatus {
                    number: status.number,
                    name: status.name.clone(),
                    attained: status.attained.clone(),
                }),
            create_time: snapshot.create_time.map(time_in),
            refs: refs_in(&snapshot.refs),
        }),
    }
    .encode_to_vec()
}

fn state_from(bytes: &[u8]) -> Result<PassState, StoredError> {
    let stored = messages::PassState::decode(bytes)?;
    let rank = |rank: u32, field| u8::try_from(rank).map_err(|_| StoredError::Field(field));
    let last = match stored.last {
        None => None,
        Some(last) => Some(FactKey {
            occur_time: time_out(last.occur_time, "last.occur_time")?,
            basis_rank: rank(last.basis_rank, "last.basis_rank")?,
            kind_rank: rank(last.kind_rank, "last.kind_rank")?,
            id: EventId::from_bytes(id_bytes(&last.id, "last.id")?),
        }),
    };
    let mut fold = Fold {
        last,
        had_installation: stored.had_installation,
        last_redemption: stored.last_redemption.map(redemption_out).transpose()?,
        refs: refs_out(stored.refs),
        installations_uncertain: stored.installations_uncertain,
        order_ambiguous: stored.order_ambiguous,
        ..Fold::default()
    };
    if let Some(validity) = stored.validity {
        fold.validity = Some((
            number(validity.kind, "validity.kind")?,
            time_out(validity.time, "validity.time")?,
        ));
    }
    for times in stored.kinds {
        let kind: Kind = number(times.kind, "kinds.kind")?;
        let times = KindTimes {
            first_time: time_out(times.first_time, "kinds.first_time")?,
            last_time: time_out(times.last_time, "kinds.last_time")?,
            count: times.count,
        };
        fold.kinds.insert(kind, times);
    }
    for installation in stored.installations {
        fold.installations.push(Installation {
            key: key_out(&installation.key)?,
            scope: installation
                .scope
                .map(|scope| number(scope, "installations.scope"))
                .transpose()?,
            wallet: installation.wallet.map(wallet_out).transpose()?,
            open: installation.open,
            open_time: time_out_optional(installation.open_time, "installations.open_time")?,
            close_time: time_out_optional(installation.close_time, "installations.close_time")?,
            transition_time: time_out(
                installation.transition_time,
                "installations.transition_time",
            )?,
            transition_basis: number(
                installation.transition_basis,
                "installations.transition_basis",
            )?,
        });
    }
    let snapshot = match stored.snapshot {
        None => None,
        Some(snapshot) => Some(Snapshot {
            pass: VendorId::new(&snapshot.pass)?,
            update_time: time_out(snapshot.update_time, "snapshot.update_time")?,
            content_digest: snapshot.content_digest,
            voided: snapshot.voided,
            redeemed_count: snapshot.redeemed_count,
            vendor_status: snapshot.vendor_status.map(|status| VendorStatus {
                number: status.number,
                name: status.name,
                attained: status.attained,
            }),
            create_time: time_out_optional(snapshot.create_time, "snapshot.create_time")?,
            refs: refs_out(snapshot.refs),
        }),
    };
    Ok(PassState { fold, snapshot })
}

/// Writes a pass: its state and its last transition facts with their content digests.
pub(crate) fn pass_blob(state: Vec<u8>, recent: &[(EventId, u64)]) -> Vec<u8> {
    seal(&messages::Pass {
        state,
        recent: recent
            .iter()
            .map(|(id, digest)| messages::RecentFact {
                id: id.as_bytes().to_vec(),
                content_digest: *digest,
            })
            .collect(),
    })
}

/// Reads a pass.
pub(crate) fn pass_from(blob: &[u8]) -> Result<(PassState, Vec<(EventId, u64)>), StoredError> {
    let stored: messages::Pass = open(blob)?;
    let recent = stored
        .recent
        .iter()
        .map(|fact| {
            Ok((
                EventId::from_bytes(id_bytes(&fact.id, "recent.id")?),
                fact.content_digest,
            ))
        })
        .collect::<Result<_, StoredError>>()?;
    Ok((state_from(&stored.state)?, recent))
}
