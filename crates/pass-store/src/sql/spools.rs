//! Spools and the epoch.

use sea_orm::{
    ActiveValue::{NotSet, Set},
    ConnectionTrait, EntityTrait, QueryOrder, QuerySelect, Statement,
    sea_query::OnConflict,
};

use super::SqlStore;
use super::append::head_of;
use super::connection::Transaction;
use super::entity::spool;
use super::rows::{Failure, get_id, number, unsigned};
use crate::contract::{Books, Error, Head, LogInfo, SpoolHello, SpoolId, SpoolOpened, SpoolRecord};
use crate::plan::HeadRow;
use crate::stored::id_bytes;
use pass_domain::cursor::Cursor;
use pass_domain::event::Position;
use pass_domain::ids::{DeliveryId, EventId};

/// Most spools in [`LogInfo`].
const SPOOLS_MAX: u64 = 1_000;
/// Longest list of missing ranges that is kept, in bytes; past it the list ends with `…`.
const MISSING_BYTES_MAX: usize = 1_024;

/// A random number, for an epoch.
pub(super) fn random() -> u64 {
    let half = || {
        let time = uuid::Timestamp::from_unix_time(0, 0, 0, 0);
        // The last eight bytes are random but for two bits; the second draw covers those.
        uuid::Uuid::new_v7(time).as_u64_pair().1
    };
    half() ^ half().rotate_left(32)
}

impl SqlStore {
    /// See [`crate::PassStore::spool_open`].
    pub(super) async fn spool_open_inner(
        &self,
        hello: &SpoolHello,
    ) -> Result<SpoolOpened, Failure> {
        if hello.settled_sequence.max(hello.oldest_sequence) >= i64::MAX as u64 {
            return Err(
                Error::Refused("spool hello: a sequence is 2^63 or more".to_owned()).into(),
            );
        }
        let (transaction, mut head) = self.begin().await?;
        let known = spool::Entity::find_by_id(hello.spool.0.to_vec())
            .one(&transaction)
            .await?;
        let known = known.unwrap_or_else(|| spool::Model {
            spool_id: hello.spool.0.to_vec(),
            gateway: String::new(),
            generation: 0,
            committed_sequence: 0,
            missing: String::new(),
            epoch: 0,
            delivery_sequence: 0,
            delivery_id: Vec::new(),
            refill_sequence: 0,
        });
        let committed = unsigned(known.committed_sequence)?;
        let went_back = hello.settled_sequence > committed;
        // If the epoch is not the one in which the spool's place was last in order, somebody noticed before:
        // this spool, another one or a replica. One change is enough: cursors from before it are refused. But
        // a spool that was acknowledged more than it had to refill tells of another loss, meanwhile.
        let refill = unsigned(known.refill_sequence)?;
        let noticed = known.epoch != 0
            && known.epoch.cast_unsigned() != head.epoch
            && (refill <= committed || refill >= hello.settled_sequence);
        let in_order = match known.epoch.cast_unsigned() {
            _ if !went_back => None,
            0 => Some(head.epoch),
            epoch => Some(epoch),
        };
        let epoch_changed = went_back && !noticed;
        if epoch_changed && !hello.may_change_epoch {
            transaction.rollback().await?;
            return Err(Error::Untrusted.into());
        }
        if went_back {
            tracing::warn!(
                spool.id = %hello.spool,
                gateway.id = %hello.gateway,
                committed_sequence = committed,
                settled_sequence = hello.settled_sequence,
                epoch_changed,
                "the database went back in time: the spool refills it"
            );
        }
        if epoch_changed {
            self.epoch_change(&transaction, &mut head).await?;
        }
        // With an empty spool everything it settled and the database lost is gone.
        let oldest = if hello.oldest_sequence == 0 {
            hello.settled_sequence + 1
        } else {
            hello.oldest_sequence
        };
        let missing = (oldest > committed + 1).then(|| (committed + 1, oldest - 1));
        let mut missing_text = known.missing;
        if let Some((first, last)) = missing {
            tracing::error!(
                spool.id = %hello.spool,
                gateway.id = %hello.gateway,
                first_sequence = first,
                last_sequence = last,
                "sequences are on neither side any more: compare with the vendors"
            );
            note_missing(&mut missing_text, first, last);
        }
        let committed = missing.map_or(committed, |(_, last)| last);
        let committed_delivery = if committed > 0 && unsigned(known.delivery_sequence)? == committed
        {
            Some(DeliveryId::from_bytes(id_bytes(
                &known.delivery_id,
                "delivery_id",
            )?))
        } else {
            None
        };
        let generation = unsigned(known.generation)? + 1;
        let row = spool::ActiveModel {
            spool_id: Set(hello.spool.0.to_vec()),
            gateway: Set(hello.gateway.replace('\0', "")),
            generation: Set(generation.cast_signed()),
            committed_sequence: Set(committed.cast_signed()),
            missing: Set(missing_text),
            // Until it refills the log, what it says is no news.
            epoch: Set(in_order.unwrap_or(head.epoch).cast_signed()),
            delivery_sequence: NotSet,
            delivery_id: NotSet,
            refill_sequence: Set(if went_back {
                hello.settled_sequence.cast_signed()
            } else {
                0
            }),
        };
        let overwrite = OnConflict::column(spool::Column::SpoolId)
            .update_columns([
                spool::Column::Gateway,
                spool::Column::Generation,
                spool::Column::CommittedSequence,
                spool::Column::Missing,
                spool::Column::Epoch,
                spool::Column::RefillSequence,
            ])
            .to_owned();
        spool::Entity::insert(row)
            .on_conflict(overwrite)
            .exec_without_returning(&transaction)
            .await?;
        self.commit(transaction, &head, 0).await?;
        Ok(SpoolOpened {
            generation,
            committed_sequence: committed,
            committed_delivery,
            epoch: head.epoch,
            epoch_changed,
            missing,
        })
    }

    async fn epoch_change(
        &self,
        transaction: &Transaction,
        head: &mut HeadRow,
    ) -> Result<(), Failure> {
        let old = head.epoch;
        while head.epoch == old {
            head.epoch = random();
        }
        self.head_write(transaction, head).await
    }

    /// See [`crate::PassStore::epoch_rotate`].
    pub(super) async fn epoch_rotate_inner(&self) -> Result<Head, Failure> {
        let (transaction, mut head) = self.begin().await?;
        if transaction.left_epoch() {
            // Just now, on account of the same loss.
            transaction.rollback().await?;
        } else {
            self.epoch_change(&transaction, &mut head).await?;
            self.commit(transaction, &head, 0).await?;
        }
        head_of(&head)
    }

    /// See [`crate::PassStore::epoch_leave`].
    pub(super) async fn epoch_leave_inner(&self, lost: Cursor) -> Result<Head, Failure> {
        let (transaction, mut head) = self.begin().await?;
        let noticed = head.epoch != lost.epoch;
        if noticed || self.holds(&transaction, &head, lost).await? {
            transaction.rollback().await?;
        } else {
            tracing::error!(
                lost_position = lost.position.0,
                found_position = head.position,
                "the database went back in time while it was in use: the log gets a new epoch"
            );
            self.epoch_change(&transaction, &mut head).await?;
            self.commit(transaction, &head, 0).await?;
        }
        head_of(&head)
    }

    /// Whether a place of the log's epoch is in it.
    async fn holds(
        &self,
        transaction: &Transaction,
        head: &HeadRow,
        place: Cursor,
    ) -> Result<bool, Failure> {
        if place.position.0 >= head.position {
            return Ok((place.position.0, place.digest) == (head.position, head.digest));
        }
        if place.position.0 == 0 {
            return Ok(true);
        }
        let text = &self.statements.event_id_at;
        let position = [number(place.position.0)];
        let statement = Statement::from_sql_and_values(self.backend(), text, position);
        let Some(row) = transaction.query_one_raw(statement).await? else {
            return Ok(false);
        };
        let id = EventId::from_bytes(get_id(&row, 0, "event_id")?);
        Ok(Cursor::digest_of(&id) == place.digest)
    }

    /// See [`crate::PassStore::books`].
    pub(super) async fn books_inner(&self) -> Result<(Head, Books), Failure> {
        let head = self.head_row().await?;
        Ok((head_of(&head)?, head.books))
    }

    /// See [`crate::PassStore::log_info`].
    pub(super) async fn log_info_inner(&self) -> Result<LogInfo, Failure> {
        let head = self.head_row().await?;
        let spools = spool::Entity::find()
            .order_by_asc(spool::Column::SpoolId)
            .limit(SPOOLS_MAX)
            .all(self.readers())
            .await?;
        let spools = spools
            .into_iter()
            .map(|model| {
                Ok(SpoolRecord {
                    spool: SpoolId(id_bytes(&model.spool_id, "spool_id")?),
                    gateway: model.gateway,
                    committed_sequence: unsigned(model.committed_sequence)?,
                    missing: model.missing,
                })
            })
            .collect::<Result<Vec<_>, Failure>>()?;
        Ok(LogInfo {
            head: head_of(&head)?,
            oldest: Position(0),
            books: head.books,
            spools,
            database: self.name(),
        })
    }
}

/// Adds a range to a list such as `5-9, 20-20`.
fn note_missing(list: &mut String, first: u64, last: u64) {
    if list.ends_with('…') {
        return;
    }
    if !list.is_empty() {
        list.push_str(", ");
    }
    if list.len() < MISSING_BYTES_MAX {
        list.push_str(&format!("{first}-{last}"));
    } else {
        list.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_ranges_are_listed_within_bounds() {
        let mut list = String::new();
        note_missing(&mut list, 5, 9);
        note_missing(&mut list, 20, 20);
        assert_eq!(list, "5-9, 20-20");
        for at in 0..1_000 {
            note_missing(&mut list, at, at);
        }
        assert!(
            list.len() < MISSING_BYTES_MAX + 50 && list.ends_with('…'),
            "{list}"
        );
    }

    #[test]
    fn epochs_use_all_bits() {
        let (mut ones, mut zeros) = (0, 0);
        for _ in 0..200 {
            let random = random();
            ones |= random;
            zeros |= !random;
        }
        assert_eq!((ones, zeros), (u64::MAX, u64::MAX));
    }
}
