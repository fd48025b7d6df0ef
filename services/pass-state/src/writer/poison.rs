//! Appending whatever happens: a delivery that the store refuses for ever goes to quarantine alone.
//!
//! A refused batch is halved, in order, until the delivery to blame is alone: about twice the binary logarithm
//! of the batch in further transactions. The halves are appended in order, so each spool's sequence only
//! moves forward. Only what the store says of the data counts (refused, a damaged row): a database that is
//! away, or set up wrongly, is no delivery's fault.

use std::sync::Arc;

use jiff::Timestamp;
use pass_domain::delivery::{Decoded, Delivery, Undecodable, UndecodableReason};
use pass_domain::ids::SourceUid;
use pass_domain::kind::Kind;
use pass_store::{AppendPart, Error, Head, PartOutcome, PassStore};

use super::Unapplied;

/// What came of appending groups.
pub(super) struct Done {
    /// One outcome per group, in order.
    pub(super) groups: Vec<Result<PartOutcome, Unapplied>>,
    /// The end of the log after the last commit, if there was one.
    pub(super) head: Option<Head>,
    /// Why something was not recorded, if the store failed.
    pub(super) failed: Option<Error>,
    /// What the store said of data that it refused and that were then tried in smaller pieces.
    pub(super) refused: Vec<Error>,
    /// Events recorded, by source and kind; a pair may be there more than once.
    pub(super) recorded: Vec<(SourceUid, Kind, u64)>,
}

/// A piece of a group: the group's number and the deliveries.
type Piece = (usize, AppendPart);

/// Appends groups in one transaction if the store lets it, else in as few as find the deliveries to blame.
pub(super) async fn append(store: &dyn PassStore, groups: Vec<AppendPart>, now: Timestamp) -> Done {
    let mut done = Done {
        groups: groups
            .iter()
            .map(|_| {
                Ok(PartOutcome::Committed {
                    committed_sequence: 0,
                    outcomes: Vec::new(),
                })
            })
            .collect(),
        head: None,
        failed: None,
        refused: Vec::new(),
        recorded: Vec::new(),
    };
    let mut work: Vec<Vec<Piece>> = vec![groups.into_iter().enumerate().collect()];
    while let Some(mut pieces) = work.pop() {
        // What follows a refusal of its own stream would be refused too.
        pieces
            .retain(|(group, _)| matches!(done.groups[*group], Ok(PartOutcome::Committed { .. })));
        if pieces.is_empty() {
            continue;
        }
        let (numbers, parts): (Vec<usize>, Vec<AppendPart>) = pieces.into_iter().unzip();
        match store.append(&parts, now).await {
            Ok(appended) => {
                done.head = Some(appended.head);
                done.recorded.extend(appended.recorded);
                for (group, outcome) in numbers.into_iter().zip(appended.parts) {
                    join(&mut done.groups[group], outcome);
                }
            }
            Err(error @ (Error::Refused(_) | Error::Corrupt(_))) => {
                let count: usize = parts.iter().map(|part| part.deliveries.len()).sum();
                let pieces = numbers.iter().copied().zip(parts).collect();
                if count > 1 {
                    done.refused.push(error);
                    let (first, second) = halve(pieces, count / 2);
                    work.push(second);
                    work.push(first);
                } else if let Some(pieces) = condemned(pieces) {
                    let delivery = &pieces[0].1.deliveries[0].1;
                    tracing::error!(
                        error = %error,
                        delivery.id = %delivery.id,
                        source.name = %delivery.source,
                        "the store refuses a delivery for ever; it goes to quarantine"
                    );
                    done.refused.push(error);
                    work.push(pieces);
                } else {
                    tracing::error!(
                        error = %error,
                        "the store refuses even a delivery without facts; its stream ends and sends it again"
                    );
                    give_up(&mut done, numbers, work, error);
                    break;
                }
            }
            Err(error) => {
                if error.is_transient() {
                    tracing::warn!(error = %error, "deliveries were not recorded; their streams end and send them again");
                } else {
                    tracing::error!(error = %error, "the store needs somebody's help; until then streams end and send again");
                }
                give_up(&mut done, numbers, work, error);
                break;
            }
        }
    }
    done
}

/// Adds the outcome of a later piece of a group to that of the earlier ones.
fn join(group: &mut Result<PartOutcome, Unapplied>, later: PartOutcome) {
    match (group, later) {
        (
            Ok(PartOutcome::Committed {
                committed_sequence,
                outcomes,
            }),
            PartOutcome::Committed {
                committed_sequence: last,
                outcomes: more,
            },
        ) => {
            *committed_sequence = last;
            outcomes.extend(more);
        }
        (group, later) => *group = Ok(later),
    }
}

/// Marks the groups that have pieces left as not recorded. Those of which everything was keep their outcome.
fn give_up(done: &mut Done, numbers: Vec<usize>, rest: Vec<Vec<Piece>>, why: Error) {
    done.failed = Some(why);
    let rest = rest.iter().flatten().map(|(group, _)| *group);
    for group in numbers.into_iter().chain(rest) {
        if matches!(done.groups[group], Ok(PartOutcome::Committed { .. })) {
            done.groups[group] = Err(Unapplied);
        }
    }
}

/// Splits pieces, in order, into one with `first_count` deliveries and the rest.
fn halve(pieces: Vec<Piece>, first_count: usize) -> (Vec<Piece>, Vec<Piece>) {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let mut left = first_count;
    for (group, mut part) in pieces {
        let rest = part.deliveries.split_off(left.min(part.deliveries.len()));
        left -= part.deliveries.len();
        if !rest.is_empty() {
            second.push((
                group,
                AppendPart {
                    spool: part.spool,
                    generation: part.generation,
                    deliveries: rest,
                },
            ));
        }
        if !part.deliveries.is_empty() {
            first.push((group, part));
        }
    }
    (first, second)
}

/// The one delivery without its facts, to be kept in quarantine; `None` if it was that already.
fn condemned(mut pieces: Vec<Piece>) -> Option<Vec<Piece>> {
    let (_, delivery) = pieces.first_mut()?.1.deliveries.first_mut()?;
    if matches!(&delivery.decoded, Decoded::Undecodable(why) if why.reason == UndecodableReason::StoreRefused)
    {
        return None;
    }
    *delivery = Arc::new(Delivery {
        decoded: Decoded::Undecodable(Undecodable {
            reason: UndecodableReason::StoreRefused,
            detail: "the store refuses its facts for ever; the service's log has the cause"
                .to_owned(),
        }),
        ..Delivery::clone(delivery)
    });
    Some(pieces)
}
