//! Faults under load, again and again, judged at the end of each stretch.
//!
//! Traffic flows, something is killed, cut or taken away, and must work again by itself in time. After every few
//! rounds traffic pauses, everything must drain, and the judge reads all of it. Senders repeat what was not
//! answered 200, as vendors do. [`kill`] is about the services, [`postgres`] and [`jetstream`] about the servers
//! that several of them share.

pub mod jetstream;
pub mod kill;
pub mod postgres;

use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::client::Senders;
use crate::dice::Dice;
use crate::fleet::{Fleet, Layout, Programs};
use crate::follower::{Follower, Habits};
use crate::oracle::Verdict;

/// Rounds between two judgements.
const ROUNDS_PER_STRETCH: usize = 10;
/// Senders at once.
const CONNECTIONS: usize = 8;
/// Longest time until everything of a stretch is recorded after its last fault.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);
/// Longest wait for services to work again after a fault. What they may take is the caller's to judge.
const RECOVERY_LIMIT: Duration = Duration::from_secs(60);
/// The subscriber changes replicas after one in so many frames.
const LEAVES_ONCE_IN: u64 = 30;

/// A fleet that is to survive something.
struct Trial {
    fleet: Fleet,
    follower: Follower,
    dice: Dice,
    verdict: Verdict,
    stretches: usize,
}

impl Trial {
    async fn start(programs: &Programs, layout: &Layout, seed: u64) -> anyhow::Result<Self> {
        let fleet = Fleet::started(programs, layout).await?;
        fleet.note_epoch().await?;
        let habits = Habits {
            seed,
            leaves_once_in: LEAVES_ONCE_IN,
            agreement: None,
        };
        let follower = Follower::start(&fleet.grpc_addresses(), habits);
        Ok(Self {
            fleet,
            follower,
            dice: Dice::new(seed),
            verdict: Verdict::default(),
            stretches: 0,
        })
    }

    /// Has traffic flow.
    fn traffic(&mut self) -> Senders {
        self.stretches += 1;
        let tag = format!("s{}", self.stretches);
        self.fleet.senders(self.dice.roll(), &tag, CONNECTIONS)
    }

    /// Lets traffic flow for a random time, which it returns.
    async fn let_flow(&mut self) -> Duration {
        let flowing = Duration::from_millis(20 + self.dice.below(400));
        // The random moment of the next fault is the point of this sleep.
        tokio::time::sleep(flowing).await;
        flowing
    }

    /// Ends traffic, waits until everything is recorded, and judges; true if nothing was found.
    async fn judge(&mut self, senders: Senders) -> anyhow::Result<bool> {
        ensure!(
            senders.finish().await,
            "some callbacks were not stored in time"
        );
        self.verdict = self.fleet.verdict(DRAIN_LIMIT).await?;
        let head = self.fleet.reader().info().await?.head_position;
        if let Err(why) = self.follower.caught_up(head, DRAIN_LIMIT).await {
            self.verdict
                .broken
                .push(format!("a subscriber that resumes by its cursor: {why:#}"));
        }
        Ok(self.verdict.is_clean())
    }

    /// Ends the services, which must be in order if everything was so far.
    async fn finish(self) -> anyhow::Result<Verdict> {
        self.follower.stop();
        if self.verdict.is_clean() {
            let finished = self.fleet.finish().await;
            finished.context("everything was recorded, but the services did not end in order")?;
        }
        Ok(self.verdict)
    }
}
