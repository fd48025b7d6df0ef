//! Replay and discard.
//!
//! | the delivery is | replay | discard |
//! |---|---|---|
//! | never in quarantine | `NotQuarantined` | `None` |
//! | open | decoded and applied as of its receive time; still undecodable: new reason, stays open | discarded |
//! | replayed | as it is; `Conflict` if it would now give other events | as it is |
//! | discarded | as open: an operator may change their mind | as it is |

use std::collections::BTreeSet;

use pass_domain::Timestamp;
use pass_domain::delivery::{Decoded, Delivery, Outcome, UndecodableReason};
use pass_domain::ids::{DeliveryId, EventId};
use pass_domain::time::to_micros;
use sea_orm::sea_query::Value;
use sea_orm::{ConnectionTrait, Statement};

use super::SqlStore;
use super::append::{head_of, outcome_value};
use super::connection::Transaction;
use super::deliveries::Found;
use super::rows::{Failure, bytes, number, signed};
use super::texts::spelled;

use crate::contract::{DeliveryRecord, Error, QuarantineState, Replayed};
use crate::plan::{Made, Planner, outcome_counter};
use crate::stored::Numbered;

/// Longest reason of a discard in bytes; longer ones are cut.
const DISCARD_REASON_BYTES_MAX: usize = 1_024;

impl SqlStore {
    async fn write_one(
        &self,
        transaction: &Transaction,
        statement: &str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<(), Failure> {
        let sql = spelled(self.backend(), statement);
        transaction
            .execute_raw(Statement::from_sql_and_values(self.backend(), sql, values))
            .await?;
        Ok(())
    }

    /// See [`crate::PassStore::delivery_replay`].
    pub(super) async fn delivery_replay_inner(
        &self,
        again: &Delivery,
        now: Timestamp,
    ) -> Result<Replayed, Failure> {
        let (transaction, head) = self.begin().await?;
        let Some(Found { record, rest }) = self.delivery_get(&transaction, again.id).await? else {
            transaction.rollback().await?;
            return Ok(Replayed::NotFound);
        };
        let Some(stay) = record.quarantine.clone() else {
            transaction.rollback().await?;
            return Ok(Replayed::NotQuarantined);
        };
        if again.source != record.delivery.source {
            return Err(Error::Refused(format!(
                "delivery {}: decoded for another source",
                again.id
            ))
            .into());
        }
        if stay.state == QuarantineState::Replayed {
            transaction.rollback().await?;
            let conflict = gives_other_events(&record, &again.decoded);
            return Ok(if conflict {
                Replayed::Conflict
            } else {
                Replayed::Done(Box::new(record), head_of(&head)?)
            });
        }
        // What was received is as recorded; only what was made of it is new.
        let mut delivery = Delivery::clone(&record.delivery);
        delivery.decoded = again.decoded.clone();
        delivery.adapter_version.clone_from(&again.adapter_version);

        let mut planner = Planner::new(head, to_micros(now));
        self.load(&transaction, &mut planner, &[&delivery]).await?;
        let resolved = [planner.resolve_decoded(&delivery)];
        self.load_histories(&transaction, &mut planner, &resolved)
            .await?;
        let outcome = planner.apply_as(&resolved[0], record.number, record.body_bytes);
        let books = planner.books_mut();
        *outcome_counter(books, record.outcome) -= 1;
        *outcome_counter(books, outcome) += 1;
        books.quarantined_facts -= u64::from(rest.refused_facts);
        books.facts -= u64::from(rest.refused_facts);
        books.quarantine_open -= u64::from(stay.state == QuarantineState::Open);
        books.quarantine_open += u64::from(outcome == Outcome::Quarantined);
        let record_micros = planner.record_micros();
        let mut rows = planner.rows_take();
        let passes = planner.passes_take(usize::MAX);
        let head = planner.finish()?;
        let row = rows.deliveries.pop().expect("apply_as makes one row");
        let (body, personal, why) = (row.body, row.personal, row.quarantine);
        self.write_replayed(
            &transaction,
            record.number,
            outcome,
            body,
            personal,
            why,
            record_micros,
        )
        .await?;
        let mut made = [Some(Made::Rows(rows)), passes.map(Made::Passes)]
            .into_iter()
            .flatten();
        self.write(&transaction, record_micros, || made.next())
            .await?;
        self.head_write(&transaction, &head).await?;
        let record = self.delivery_get(&transaction, again.id).await?;
        let record = record
            .ok_or_else(|| Error::Corrupt(format!("delivery {} is gone", again.id)))?
            .record;
        self.commit(transaction, &head, 0).await?;
        Ok(Replayed::Done(Box::new(record), head_of(&head)?))
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the columns of three rows, used once"
    )]
    async fn write_replayed(
        &self,
        transaction: &Transaction,
        at: u64,
        outcome: Outcome,
        body: Vec<u8>,
        personal: Vec<u8>,
        why: Option<(UndecodableReason, String)>,
        record_micros: i64,
    ) -> Result<(), Failure> {
        let delivery = "UPDATE delivery SET outcome = ?, body = ? WHERE number = ?";
        self.write_one(
            transaction,
            delivery,
            [outcome_value(outcome), bytes(body), number(at)],
        )
        .await?;
        // No row: the holder was erased meanwhile, and stays so.
        let holder = "UPDATE delivery_personal SET personal = ? WHERE number = ?";
        self.write_one(transaction, holder, [bytes(personal), number(at)])
            .await?;
        match why {
            Some((reason, detail)) => {
                let stay = "UPDATE quarantine SET state = ?, reason = ?, detail = ?, update_micros = ?, \
                            discard_reason = ? WHERE number = ?";
                let values = [
                    state_value(QuarantineState::Open),
                    signed(i64::from(reason.number())),
                    bytes(detail.into_bytes()),
                    signed(record_micros),
                    bytes(Vec::new()),
                    number(at),
                ];
                self.write_one(transaction, stay, values).await
            }
            None => {
                let stay = "UPDATE quarantine SET state = ?, update_micros = ?, discard_reason = ? WHERE number = ?";
                let values = [
                    state_value(QuarantineState::Replayed),
                    signed(record_micros),
                    bytes(Vec::new()),
                    number(at),
                ];
                self.write_one(transaction, stay, values).await
            }
        }
    }

    /// See [`crate::PassStore::delivery_discard`].
    pub(super) async fn delivery_discard_inner(
        &self,
        id: DeliveryId,
        reason: &str,
        now: Timestamp,
    ) -> Result<Option<DeliveryRecord>, Failure> {
        let (transaction, mut head) = self.begin().await?;
        let found = self.delivery_get(&transaction, id).await?;
        let Some((record, stay)) = found.and_then(|found| {
            let stay = found.record.quarantine.clone()?;
            Some((found.record, stay))
        }) else {
            transaction.rollback().await?;
            return Ok(None);
        };
        if stay.state != QuarantineState::Open {
            transaction.rollback().await?;
            return Ok(Some(record));
        }
        head.record_micros = head.record_micros.max(to_micros(now));
        head.books.quarantine_open -= 1;
        let mut cut = reason.len().min(DISCARD_REASON_BYTES_MAX);
        while !reason.is_char_boundary(cut) {
            cut -= 1;
        }
        let statement = "UPDATE quarantine SET state = ?, update_micros = ?, discard_reason = ? WHERE number = ?";
        let values = [
            state_value(QuarantineState::Discarded),
            signed(head.record_micros),
            bytes(&reason.as_bytes()[..cut]),
            number(record.number),
        ];
        self.write_one(&transaction, statement, values).await?;
        self.head_write(&transaction, &head).await?;
        let record = self
            .delivery_get(&transaction, id)
            .await?
            .map(|found| found.record);
        self.commit(transaction, &head, 0).await?;
        Ok(record)
    }
}

fn state_value(state: QuarantineState) -> Value {
    signed(i64::from(state.number()))
}

/// True if a delivery has events and decoding it again gives others.
fn gives_other_events(record: &DeliveryRecord, again: &Decoded) -> bool {
    let Decoded::Facts(facts) = again else {
        return false;
    };
    let mine: BTreeSet<EventId> = record.events.iter().map(|(_, id)| *id).collect();
    let theirs: BTreeSet<EventId> = facts.facts.iter().map(|fact| fact.id).collect();
    !mine.is_empty() && mine != theirs
}
