//! Faults on purpose, for a test that must find them: feature `planted-bugs`, in no released binary.
//!
//! The classic one is to take positions from a sequence: it is not part of the transaction, so of two
//! transactions the one with the higher positions may commit first, and whoever reads then will never see
//! the lower ones.

use std::time::Duration;

use sea_orm::sqlx::Row;

use super::Transaction;
use super::connect::Connector;
use super::statement::{self, failed};
use crate::contract::Error;
use crate::plan::HeadRow;
use crate::sql::append::head_row_from;
use crate::sql::rows::Failure;
use crate::sql::spools::random;
use crate::sql::statements::HEAD_COLUMNS;

/// Guards the sequences for as long as it takes to move them, and not until the commit.
const LOCK: i64 = i64::from_be_bytes(*b"planted!");

/// What is planted.
#[derive(Clone, Copy, Debug)]
pub(in crate::sql) struct Planted {
    pub(in crate::sql) sequence_positions: bool,
    pub(in crate::sql) delay_max: Duration,
}

impl Planted {
    pub(super) fn of(connector: &Connector) -> Self {
        let options = connector.options();
        Self {
            sequence_positions: options.planted_sequence_positions,
            delay_max: options.transaction_delay_max,
        }
    }

    /// Sleeps for a random time inside the transaction.
    pub(in crate::sql) async fn delay(self) {
        let micros = u64::try_from(self.delay_max.as_micros()).unwrap_or(u64::MAX);
        if micros > 0 {
            tokio::time::sleep(Duration::from_micros(random() % micros)).await;
        }
    }
}

/// Makes the sequences.
pub(super) async fn prepare(connector: &Connector) -> Result<(), Error> {
    if !connector.options().planted_sequence_positions {
        return Ok(());
    }
    let mut connection = connector.connect().await?;
    let sequence =
        |name: &str| format!("CREATE SEQUENCE IF NOT EXISTS planted_{name} MINVALUE 0 START 0; ");
    let text = format!(
        "BEGIN; SELECT pg_advisory_xact_lock({LOCK}); {}{}{}COMMIT",
        sequence("position"),
        sequence("pass"),
        sequence("delivery")
    );
    let made = statement::text(&mut connection, text).await;
    made.map(|_| ()).map_err(|error| super::meaning(&error))
}

impl Transaction {
    /// The last position, pass and delivery before a run of so many, which nobody else gets.
    pub(in crate::sql) async fn planted_take(
        &self,
        positions: u64,
        passes: u64,
        deliveries: u64,
    ) -> Result<[u64; 3], Failure> {
        let counts = [positions, passes, deliveries];
        let next = |name: &str, count: u64| {
            format!("setval('planted_{name}', (SELECT last_value FROM planted_{name}) + {count})")
        };
        let text = format!(
            "SELECT pg_advisory_lock({LOCK}); SELECT {}, {}, {}; SELECT pg_advisory_unlock({LOCK})",
            next("position", positions),
            next("pass", passes),
            next("delivery", deliveries)
        );
        let rows = self.text(text).await?;
        let row = rows
            .get(1)
            .ok_or_else(|| Error::Corrupt("a sequence has no row".to_owned()))?;
        let mut before = [0; 3];
        for (at, count) in counts.into_iter().enumerate() {
            let last: i64 = row.try_get(at).map_err(failed)?;
            before[at] = last.cast_unsigned() - count;
        }
        Ok(before)
    }

    /// Keeps what others have written to the head meanwhile, as somebody would who has no lock from the start.
    pub(in crate::sql) async fn planted_merge(&self, head: &mut HeadRow) -> Result<(), Failure> {
        let text = format!("SELECT {HEAD_COLUMNS} FROM log_head WHERE id = 1 FOR UPDATE");
        let row = self.text(text).await?.into_iter().next();
        let row = row.ok_or_else(|| Error::Corrupt("log_head has no row".to_owned()))?;
        let found = head_row_from(&row.into())?;
        if found.position > head.position {
            (head.position, head.digest) = (found.position, found.digest);
        }
        head.epoch = found.epoch;
        head.record_micros = head.record_micros.max(found.record_micros);
        Ok(())
    }
}
