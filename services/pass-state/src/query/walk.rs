//! Lists: walks over pages of the store until a page for the client is full, or long enough was searched.

use std::future::Future;

use pass_proto::status::Fault;
use pass_store::{self as store, Page};
use prost::Message;

use crate::fault;

/// Fewest rows asked of the store at a time when a filter may pass over most of them.
const ROWS_MIN: usize = 256;

/// What is walked over.
pub(crate) trait Rows: Sync {
    /// A row of the store.
    type Row: Send;
    /// What the client gets for it.
    type Wire: Message + Send;

    /// A page of the store.
    fn fetch(
        &self,
        from: u64,
        rows_max: u32,
    ) -> impl Future<Output = Result<Page<Self::Row>, store::Error>> + Send;

    /// Where a list that ends with the row goes on.
    fn place(&self, row: &Self::Row) -> u64;

    /// The row for the client; `None` if the filter does not want it.
    fn wire(&self, row: &Self::Row) -> Option<Self::Wire>;

    /// True if every row is wanted, so that none need be fetched in vain.
    fn wants_all(&self) -> bool;
}

/// Bounds of one walk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Rows for the client.
    pub(crate) rows: usize,
    /// Rows examined.
    pub(crate) examined: u32,
    /// Encoded bytes of the rows; one row may exceed it.
    pub(crate) bytes: usize,
}

/// Walks from a place. Returns the rows and where the next page starts; `None` at the end.
pub(crate) async fn walk<R: Rows>(
    rows: &R,
    mut from: u64,
    bounds: Bounds,
) -> Result<(Vec<R::Wire>, Option<u64>), Fault> {
    let (mut found, mut bytes) = (Vec::new(), 0);
    let mut left = bounds.examined;
    loop {
        let missing = bounds.rows - found.len();
        let wish = if rows.wants_all() {
            missing
        } else {
            missing.max(ROWS_MIN)
        };
        let rows_max = u32::try_from(wish).unwrap_or(u32::MAX).min(left);
        let page = rows
            .fetch(from, rows_max)
            .await
            .map_err(|error| fault::of_store(&error))?;
        for row in &page.rows {
            if let Some(wire) = rows.wire(row) {
                let wire_bytes = wire.encoded_len();
                if found.len() == bounds.rows
                    || (!found.is_empty() && bytes + wire_bytes > bounds.bytes)
                {
                    return Ok((found, Some(from)));
                }
                bytes += wire_bytes;
                found.push(wire);
            }
            from = rows.place(row);
        }
        left = left.saturating_sub(rows_max);
        match page.next {
            None => return Ok((found, None)),
            Some(next) => from = next,
        }
        if found.len() == bounds.rows || left == 0 {
            return Ok((found, Some(from)));
        }
    }
}
