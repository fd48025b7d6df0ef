//! The stored form of a pass.

use pass_domain::fact::{Snapshot, VendorStatus};
use pass_domain::fold::{FactKey, Fold, Installation, KindTimes, PassState};
use pass_domain::ids::{EventId, VendorId};
use pass_domain::kind::Kind;
use prost::Message;

use super::numbers::Numbered;
use super::writer::Writer;
use super::{
    StoredError, VERSION, id_bytes, key_out, messages, number, open, redemption_in, redemption_out,
    refs_in, refs_out, time_out, time_out_optional, wallet_in, wallet_out,
};

/// The state of a pass in bytes; equal states give equal bytes.
pub(crate) fn state_bytes(state: &PassState) -> Vec<u8> {
    let fold = &state.fold;
    let mut writer = Writer::new();
    if let Some(last) = &fold.last {
        writer.message(1, |message| {
            message.time(1, last.occur_time);
            message.unsigned(2, last.basis_rank);
            message.unsigned(3, last.kind_rank);
            message.bytes(4, last.id.as_bytes());
        });
    }
    for (kind, times) in &fold.kinds {
        writer.message(2, |message| {
            message.int(1, kind.number());
            message.time(2, times.first_time);
            message.time(3, times.last_time);
            message.unsigned(4, times.count);
        });
    }
    for installation in &fold.installations {
        writer.message(3, |message| {
            message.bytes(1, installation.key.as_str());
            if let Some(scope) = installation.scope {
                message.present_int(2, scope.number());
            }
            wallet_in(message, 3, installation.wallet.as_ref());
            message.unsigned(4, installation.open);
            message.time_optional(5, installation.open_time);
            message.time_optional(6, installation.close_time);
            message.time(7, installation.transition_time);
            message.int(8, installation.transition_basis.number());
        });
    }
    writer.unsigned(4, fold.had_installation);
    if let Some((kind, time)) = fold.validity {
        writer.message(5, |message| {
            message.int(1, kind.number());
            message.time(2, time);
        });
    }
    redemption_in(&mut writer, 6, fold.last_redemption.as_ref());
    refs_in(&mut writer, 7, &fold.refs);
    writer.unsigned(8, fold.installations_uncertain);
    writer.unsigned(9, fold.order_ambiguous);
    if let Some(snapshot) = &state.snapshot {
        writer.message(10, |message| snapshot_in(message, snapshot));
    }
    writer.finish()
}

fn snapshot_in(message: &mut Writer, snapshot: &Snapshot) {
    message.bytes(1, snapshot.pass.as_str());
    message.time(2, snapshot.update_time);
    message.fixed(3, snapshot.content_digest);
    if let Some(voided) = snapshot.voided {
        message.present_int(4, i32::from(voided));
    }
    if let Some(count) = snapshot.redeemed_count {
        message.present_signed(5, count);
    }
    if let Some(status) = &snapshot.vendor_status {
        message.message(6, |message| {
            if let Some(number) = status.number {
                message.present_signed(1, number);
            }
            message.bytes(2, &status.name);
            message.each(3, &status.attained);
        });
    }
    message.time_optional(7, snapshot.create_time);
    refs_in(message, 8, &snapshot.refs);
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
pub(crate) fn pass_blob(state: &[u8], recent: &[(EventId, u64)]) -> Vec<u8> {
    let mut writer = Writer::versioned(VERSION);
    writer.bytes(1, state);
    for (id, digest) in recent {
        writer.message(2, |message| {
            message.bytes(1, id.as_bytes());
            message.fixed(2, *digest);
        });
    }
    writer.finish()
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
