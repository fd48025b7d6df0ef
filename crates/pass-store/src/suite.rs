//! What every store must do, as cases that take a fresh, empty store each.
//!
//! [`store_suite!`](crate::store_suite) stamps them out as tests for one implementation. A case may use
//! any source names: the store is its own.

pub mod log;
pub mod make;
pub mod plans;
pub mod quarantine;
pub mod reads;
pub mod scopes;
pub mod spools;

use std::sync::Arc;

use pass_domain::Timestamp;
use pass_domain::delivery::{Delivery, Outcome};
use pass_domain::event::{Event, Position};

use crate::contract::{AppendPart, Appended, PartOutcome, PassStore, Scope, SpoolHello, SpoolId};

/// Stamps out the suite as tests. The argument is the path of an async function without arguments that
/// gives an `Arc<dyn PassStore>` on an empty database, and a guard that is dropped after the test.
#[macro_export]
macro_rules! store_suite {
    ($make:path) => {
        $crate::store_suite! { @ $make:
            log exactly_once_whatever_is_sent_again;
            log an_event_is_read_as_it_was_told;
            log passes_depend_on_the_set_of_deliveries_alone;
            log late_facts_fold_a_recorded_pass_anew;
            log differing_duplicates_are_counted_and_shown;
            log the_books_balance;
            log odd_but_legal_data_are_kept;
            log what_breaks_a_limit_goes_to_quarantine;
            log record_times_never_go_back;
            log readers_see_whole_batches_in_order;
            log writers_at_once_make_one_log;
            log large_batches_use_every_statement;
            spools a_newer_stream_fences_the_older;
            spools sequences_are_committed_once_and_without_gaps;
            spools a_database_that_went_back_gets_a_new_epoch;
            spools spools_that_notice_together_change_the_epoch_once;
            spools a_spool_that_is_not_trusted_changes_no_epoch;
            spools an_epoch_can_be_rotated;
            spools a_rotation_answers_for_what_was_lost_before_it;
            spools a_spool_whose_refill_is_interrupted_tells_nothing_new;
            spools an_epoch_is_left_for_a_place_that_is_gone_and_only_then;
            spools replicas_and_spools_that_miss_the_same_change_the_epoch_once;
            spools the_delivery_at_the_committed_sequence_is_known;
            spools a_dropped_append_happened_whole_or_not_at_all;
            quarantine a_replayed_delivery_is_applied_once_as_of_its_receive_time;
            quarantine a_delivery_still_undecodable_stays_open;
            quarantine a_discard_is_final_until_replayed;
            quarantine deliveries_are_listed_newest_first;
            quarantine open_quarantine_is_listed_however_much_of_it_there_is;
            reads events_are_paged_both_ways;
            reads a_scope_hides_other_sources_and_personal_data;
            reads passes_are_paged_in_both_orders;
            reads passes_are_looked_up_by_other_names;
            reads what_is_not_there_is_absent;
            scopes every_read_gives_what_its_scope_allows_and_nothing_else;
            scopes a_pass_out_of_scope_has_no_next_page;
        }
    };
    (@ $make:path: $($module:ident $case:ident;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let (store, guard) = $make().await;
                $crate::suite::$module::$case(std::sync::Arc::clone(&store)).await;
                store.close().await;
                drop(guard);
            }
        )*
    };
}

/// A spool that a case feeds.
#[derive(Clone, Debug)]
pub struct Feed {
    store: Arc<dyn PassStore>,
    /// The spool.
    pub spool: SpoolId,
    /// Its generation.
    pub generation: u64,
    /// The last sequence sent.
    pub sequence: u64,
}

impl std::fmt::Debug for dyn PassStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PassStore")
    }
}

impl Feed {
    /// Opens a spool.
    pub async fn open(store: &Arc<dyn PassStore>, id: u8) -> Self {
        let opened = store.spool_open(&hello(id)).await.expect("opened");
        Self {
            store: Arc::clone(store),
            spool: SpoolId([id; 16]),
            generation: opened.generation,
            sequence: opened.committed_sequence,
        }
    }

    /// The next deliveries as a part.
    pub fn part(&mut self, deliveries: impl IntoIterator<Item = Delivery>) -> AppendPart {
        let deliveries = deliveries
            .into_iter()
            .map(|delivery| {
                self.sequence += 1;
                (self.sequence, Arc::new(delivery))
            })
            .collect();
        AppendPart {
            spool: self.spool,
            generation: self.generation,
            deliveries,
        }
    }

    /// Appends deliveries at a time, and gives their outcomes.
    pub async fn append_at(
        &mut self,
        deliveries: impl IntoIterator<Item = Delivery>,
        now: Timestamp,
    ) -> Vec<Outcome> {
        let part = self.part(deliveries);
        let appended = self.store.append(&[part], now).await.expect("appended");
        outcomes(&appended, 0)
    }

    /// Appends deliveries a million seconds after the start.
    pub async fn append(&mut self, deliveries: impl IntoIterator<Item = Delivery>) -> Vec<Outcome> {
        self.append_at(deliveries, make::at(1_000_000)).await
    }
}

/// What a gateway says whose spool is new.
#[must_use]
pub fn hello(id: u8) -> SpoolHello {
    SpoolHello {
        spool: SpoolId([id; 16]),
        gateway: format!("gateway-{id}"),
        settled_sequence: 0,
        oldest_sequence: 0,
        may_change_epoch: true,
    }
}

/// The outcomes of a part that must have been committed.
#[must_use]
pub fn outcomes(appended: &Appended, part: usize) -> Vec<Outcome> {
    match &appended.parts[part] {
        PartOutcome::Committed { outcomes, .. } => {
            outcomes.iter().map(|(_, outcome)| *outcome).collect()
        }
        other => panic!("part {part} was not committed: {other:?}"),
    }
}

/// The whole log, in pages, checked for order and gaps.
pub async fn whole_log(store: &dyn PassStore) -> Vec<Arc<Event>> {
    let mut log: Vec<Arc<Event>> = Vec::new();
    let mut after = Position(0);
    while let Some(next) = {
        let page = store
            .events_after(&Scope::everything(), after, 7)
            .await
            .expect("read");
        log.extend(page.rows);
        page.next
    } {
        after = Position(next);
    }
    for (at, event) in log.iter().enumerate() {
        assert_eq!(event.position.0, at as u64 + 1, "positions have no gap");
    }
    log
}
