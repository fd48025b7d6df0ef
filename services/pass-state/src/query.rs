//! Reads: names, filters, masks, pages, and waiting for a place in the log.
//!
//! [`Reader`] answers; the gRPC services decode, call it and encode.

use std::sync::Arc;

use pass_domain::cursor::Cursor;
use pass_domain::ids::{PassKey, SourceUid};
use pass_proto::status::{Fault, Reason};
use pass_store::{Head, PassStore};

use crate::config::ReadConfig;
use crate::fault;
use crate::tail::Tail;
use crate::tail::subscription::epoch_mismatch;

pub(crate) mod deliveries;
pub(crate) mod events;
pub(crate) mod mask;
pub(crate) mod page;
pub(crate) mod passes;
pub(crate) mod personal;
pub(crate) mod walk;
pub(crate) mod words;

/// What reads stand on.
#[derive(Clone)]
pub(crate) struct Reader {
    pub(crate) store: Arc<dyn PassStore>,
    pub(crate) tail: Arc<Tail>,
    pub(crate) config: ReadConfig,
    pub(crate) answer_bytes_max: usize,
}

impl Reader {
    /// Waits until the log has reached a place, and returns its end.
    ///
    /// # Errors
    /// MIN_CURSOR_NOT_REACHED after the configured wait; CURSOR_EPOCH_MISMATCH.
    pub(crate) async fn reach(&self, min_cursor: Option<Cursor>) -> Result<Head, Fault> {
        let Some(wanted) = min_cursor else {
            return Ok(self.tail.head());
        };
        let mut watch = self.tail.watch_head();
        let there = |head: &Head| head.epoch != wanted.epoch || head.position >= wanted.position;
        if !there(&watch.borrow()) {
            // Another replica may have committed it.
            self.tail
                .head_now()
                .await
                .map_err(|error| fault::of_store(&error))?;
        }
        let waited =
            tokio::time::timeout(self.config.min_cursor_wait.get(), watch.wait_for(there)).await;
        let head = match waited {
            Ok(Ok(head)) => *head,
            Ok(Err(_)) | Err(_) => {
                return Err(Fault::new(
                    Reason::MinCursorNotReached,
                    "the log has not reached min_cursor yet; try again",
                ));
            }
        };
        if head.epoch == wanted.epoch {
            Ok(head)
        } else {
            Err(epoch_mismatch(&head))
        }
    }
}

/// Reads `sources/{source}`; `None` for `sources/-`.
pub(crate) fn parse_source_parent(parent: &str) -> Result<Option<SourceUid>, String> {
    let uid = parent
        .strip_prefix("sources/")
        .ok_or("must look like sources/{source} or sources/-")?;
    if uid == "-" {
        return Ok(None);
    }
    SourceUid::new(uid)
        .map(Some)
        .map_err(|error| error.to_string())
}

/// Reads a pass's resource name.
pub(crate) fn parse_pass_name(name: &str) -> Result<PassKey, String> {
    name.parse::<PassKey>().map_err(|error| error.to_string())
}
