//! The write path: one transaction per batch.

use std::collections::{BTreeMap, HashMap};

use pass_domain::Timestamp;
use pass_domain::delivery::{Delivery, Outcome};
use pass_domain::event::Position;
use pass_domain::ids::{DeliveryId, EventId, SourceUid};
use pass_domain::kind::Kind;
use pass_domain::time::to_micros;
use sea_orm::{ConnectionTrait, QueryResult, Statement};

use super::connection::Transaction;
use super::rows::{Failure, bits, bytes, get, get_bits, get_id, get_number, number, signed, time};
use super::{Database, SqlStore, postgres, sqlite};
use crate::contract::{AppendPart, Appended, Books, Head, PartOutcome, SpoolId};
use crate::plan::{HeadRow, Made, PassLoaded, Planner, Resolved, SpoolPlace, select};
use crate::stored::{self, Numbered};

/// How many deliveries, and then passes, are worked on before asking whether the database is done.
const PLANNED_AT_ONCE: usize = 16;

/// Reads the head from `statements::HEAD_COLUMNS`.
pub(super) fn head_row_from(row: &QueryResult) -> Result<HeadRow, Failure> {
    Ok(HeadRow {
        epoch: get_bits(row, 0)?,
        position: get_number(row, 1)?,
        digest: get_bits(row, 2)?,
        record_micros: get(row, 3)?,
        last_pass_number: get_number(row, 4)?,
        last_delivery_number: get_number(row, 5)?,
        books: Books {
            deliveries: get_number(row, 6)?,
            applied: get_number(row, 7)?,
            duplicate: get_number(row, 8)?,
            control: get_number(row, 9)?,
            quarantined: get_number(row, 10)?,
            facts: get_number(row, 11)?,
            events: get_number(row, 12)?,
            duplicate_facts: get_number(row, 13)?,
            quarantined_facts: get_number(row, 14)?,
            differing_duplicates: get_number(row, 15)?,
            quarantine_open: get_number(row, 16)?,
        },
    })
}

/// The contract's head of a head row.
pub(super) fn head_of(row: &HeadRow) -> Result<Head, Failure> {
    Ok(Head {
        epoch: row.epoch,
        position: Position(row.position),
        digest: row.digest,
        record_time: time(row.record_micros)?,
    })
}

impl SqlStore {
    /// Writes the head back.
    pub(super) async fn head_write(
        &self,
        transaction: &Transaction,
        head: &HeadRow,
    ) -> Result<(), Failure> {
        let books = &head.books;
        let values = [
            bits(head.epoch),
            number(head.position),
            bits(head.digest),
            signed(head.record_micros),
            number(head.last_pass_number),
            number(head.last_delivery_number),
            number(books.deliveries),
            number(books.applied),
            number(books.duplicate),
            number(books.control),
            number(books.quarantined),
            number(books.facts),
            number(books.events),
            number(books.duplicate_facts),
            number(books.quarantined_facts),
            number(books.differing_duplicates),
            number(books.quarantine_open),
        ];
        let statement =
            Statement::from_sql_and_values(self.backend(), &self.statements.head_write, values);
        transaction.execute_raw(statement).await?;
        Ok(())
    }

    /// See [`crate::PassStore::append`].
    pub(super) async fn append_inner(
        &self,
        parts: &[AppendPart],
        now: Timestamp,
    ) -> Result<Appended, Failure> {
        let (transaction, head) = self.begin().await?;
        let mut places = self.spool_places(&transaction, parts).await?;
        let mut selected = select(parts, &mut places);
        if selected.fresh.is_empty() {
            transaction.rollback().await?;
            return Ok(Appended {
                parts: selected.parts,
                head: head_of(&head)?,
                recorded: Vec::new(),
            });
        }
        let deliveries: Vec<&Delivery> =
            selected.fresh.iter().map(|fresh| fresh.delivery).collect();
        let mut planner = Planner::new(head, to_micros(now));
        let ids: Vec<_> = deliveries
            .iter()
            .map(|delivery| bytes(delivery.id.as_bytes().as_slice()))
            .collect();
        for row in self
            .statements
            .deliveries_known
            .query(&transaction, &[], ids)
            .await?
        {
            planner.deliveries_loaded([DeliveryId::from_bytes(get_id(&row, 0, "delivery_id")?)]);
        }
        self.load(&transaction, &mut planner, &deliveries).await?;
        let resolved: Vec<Resolved<'_>> = deliveries
            .iter()
            .map(|delivery| planner.resolve(delivery))
            .collect();
        self.load_histories(&transaction, &mut planner, &resolved)
            .await?;
        #[cfg(feature = "planted-bugs")]
        if let Some(transaction) = self.planted(&transaction) {
            let [events, passes] = planner.planted_counts(&resolved);
            let deliveries = resolved.len() as u64;
            let starts = transaction.planted_take(events, passes, deliveries);
            planner.planted_start(starts.await?);
        }
        let mut counts: BTreeMap<(&SourceUid, Kind), u64> = BTreeMap::new();
        for place in resolved.iter().flat_map(Resolved::new_events) {
            *counts.entry(place).or_default() += 1;
        }
        let recorded = counts
            .iter()
            .map(|((source, kind), count)| (SourceUid::clone(source), *kind, *count))
            .collect();
        let mut steps = selected
            .fresh
            .chunks(PLANNED_AT_ONCE)
            .zip(resolved.chunks(PLANNED_AT_ONCE));
        let record_micros = planner.record_micros();
        let made = || {
            let Some((fresh, resolved)) = steps.next() else {
                return planner.passes_take(PLANNED_AT_ONCE).map(Made::Passes);
            };
            for (fresh, resolved) in fresh.iter().zip(resolved) {
                let outcome = planner.apply(resolved);
                if let PartOutcome::Committed { outcomes, .. } = &mut selected.parts[fresh.part] {
                    outcomes[fresh.at].1 = outcome;
                }
            }
            Some(Made::Rows(planner.rows_take()))
        };
        let written_bytes = self.write(&transaction, record_micros, made).await?;
        let head = planner.finish()?;
        #[cfg(feature = "planted-bugs")]
        let head = self.planted_end(&transaction, head).await?;
        let moved = parts
            .iter()
            .zip(&selected.parts)
            .filter_map(|(part, outcome)| match outcome {
                PartOutcome::Committed { .. } => {
                    let place = places.remove(&part.spool)?;
                    Some((part.spool.0, place.committed_sequence, place.moved_by?))
                }
                PartOutcome::Fenced | PartOutcome::Gap { .. } => None,
            });
        self.spools_progress(&transaction, head.epoch, moved.collect())
            .await?;
        self.head_write(&transaction, &head).await?;
        self.commit(transaction, &head, written_bytes).await?;
        Ok(Appended {
            parts: selected.parts,
            head: head_of(&head)?,
            recorded,
        })
    }

    async fn spool_places(
        &self,
        transaction: &Transaction,
        parts: &[AppendPart],
    ) -> Result<HashMap<SpoolId, SpoolPlace>, Failure> {
        let keys: Vec<_> = parts
            .iter()
            .map(|part| bytes(part.spool.0.as_slice()))
            .collect();
        let mut places = HashMap::new();
        for row in self.statements.spools.query(transaction, &[], keys).await? {
            let place = SpoolPlace {
                generation: get_number(&row, 1)?,
                committed_sequence: get_number(&row, 2)?,
                moved_by: None,
            };
            places.insert(SpoolId(get_id(&row, 0, "spool_id")?), place);
        }
        Ok(places)
    }

    /// Writes the rows that `made` makes, which is called until it has none. Returns about how many bytes they
    /// have, where that matters.
    pub(super) async fn write<'a>(
        &self,
        transaction: &Transaction,
        record_micros: i64,
        made: impl FnMut() -> Option<Made<'a>>,
    ) -> Result<u64, Failure> {
        match (&self.database, transaction) {
            (Database::Sqlite(connections), Transaction::Sqlite(_)) => {
                let outbox = sqlite::Outbox::new(&connections.inserts, record_micros);
                Ok(outbox.run(transaction, made).await?)
            }
            (Database::Postgres(_), Transaction::Postgres(transaction)) => {
                postgres::write(transaction, record_micros, made).await?;
                Ok(0)
            }
            _ => unreachable!("a transaction is of its store's kind"),
        }
    }

    /// The transaction, if its positions come from a sequence.
    #[cfg(feature = "planted-bugs")]
    fn planted<'t>(&self, transaction: &'t Transaction) -> Option<&'t postgres::Transaction> {
        match (&self.database, transaction) {
            (Database::Postgres(server), Transaction::Postgres(transaction))
                if server.writer.planted.sequence_positions =>
            {
                Some(transaction)
            }
            _ => None,
        }
    }

    #[cfg(feature = "planted-bugs")]
    async fn planted_end(
        &self,
        transaction: &Transaction,
        mut head: HeadRow,
    ) -> Result<HeadRow, Failure> {
        if let Database::Postgres(server) = &self.database {
            server.writer.planted.delay().await;
        }
        if let Some(transaction) = self.planted(transaction) {
            transaction.planted_merge(&mut head).await?;
        }
        Ok(head)
    }

    async fn spools_progress(
        &self,
        transaction: &Transaction,
        epoch: u64,
        spools: Vec<([u8; 16], u64, DeliveryId)>,
    ) -> Result<(), Failure> {
        if let Transaction::Postgres(transaction) = transaction {
            return Ok(postgres::spools_progress(transaction, epoch, spools).await?);
        }
        for (id, sequence, delivery) in spools {
            let values = [
                number(sequence),
                number(sequence),
                bytes(delivery.as_bytes().as_slice()),
                number(sequence),
                bits(epoch),
                bytes(id.as_slice()),
            ];
            let text = &self.statements.spool_progress;
            let statement = Statement::from_sql_and_values(self.backend(), text, values);
            transaction.execute_raw(statement).await?;
        }
        Ok(())
    }

    /// Loads the passes of deliveries and those of their facts that are recorded.
    pub(super) async fn load<'a>(
        &self,
        connection: &impl ConnectionTrait,
        planner: &mut Planner<'a>,
        deliveries: &[&'a Delivery],
    ) -> Result<(), Failure> {
        let wanted = planner.passes_wanted(deliveries.iter().copied());
        for row in self.statements.passes_by_name(connection, wanted).await? {
            let (state, recent) = stored::pass_from(&get::<Vec<u8>>(&row, 8)?)?;
            planner.pass_loaded(PassLoaded {
                number: get_number(&row, 0)?,
                source: get(&row, 1)?,
                vendor_pass_id: get(&row, 2)?,
                state,
                recent,
                last_position: get_number(&row, 5)?,
                last_digest: get_bits(&row, 6)?,
            });
        }
        let wanted = planner.facts_wanted(deliveries.iter().copied());
        let keys: Vec<_> = wanted
            .iter()
            .map(|id| bytes(id.as_bytes().as_slice()))
            .collect();
        for row in self
            .statements
            .facts_known
            .query(connection, &[], keys)
            .await?
        {
            let id = EventId::from_bytes(get_id(&row, 0, "event_id")?);
            planner.facts_loaded([(id, get_bits(&row, 1)?)]);
        }
        Ok(())
    }

    /// Loads all recorded facts of passes that a late fact makes fold anew.
    pub(super) async fn load_histories<'a>(
        &self,
        connection: &impl ConnectionTrait,
        planner: &mut Planner<'a>,
        resolved: &[Resolved<'a>],
    ) -> Result<(), Failure> {
        let wanted = planner.histories_wanted(resolved);
        let mut histories: HashMap<u64, Vec<_>> =
            wanted.iter().map(|pass| (*pass, Vec::new())).collect();
        let keys = wanted.into_iter().map(number).collect();
        for row in self
            .statements
            .histories
            .query(connection, &[], keys)
            .await?
        {
            let position = Position(get_number(&row, 1)?);
            let id = EventId::from_bytes(get_id(&row, 2, "event_id")?);
            let body: Vec<u8> = get(&row, 4)?;
            let event = stored::event_from(position, id, time(get(&row, 3)?)?, &body)?;
            if let Some(facts) = histories.get_mut(&get_number(&row, 0)?) {
                facts.push(event.fact);
            }
        }
        for (pass, facts) in histories {
            planner.history_loaded(pass, facts)?;
        }
        Ok(())
    }
}

/// An outcome's column.
pub(super) fn outcome_value(outcome: Outcome) -> sea_orm::Value {
    signed(i64::from(outcome.number()))
}
