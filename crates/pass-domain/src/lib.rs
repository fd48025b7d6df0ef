//! What Passline knows about passes: names, facts, identity, the fold, cursors and the filter language.
//!
//! This crate is pure. It knows nothing of IO, async, clocks, serialisation formats, databases or gRPC;
//! every function's answer depends on its arguments alone. That is what makes the central promise
//! testable: the state of a pass depends only on the *set* of facts about it (see [`fold`]).
//!
//! Start reading at [`fact`] (what a delivery says), then [`identity`] (when two facts are the same one),
//! then [`fold`] (what facts add up to), then [`cursor`] (a place in the log).

pub mod cursor;
pub mod delivery;
pub mod event;
pub mod fact;
pub mod filter;
pub mod fold;
pub mod identity;
pub mod ids;
pub mod kind;
pub mod limits;
pub mod time;

pub use jiff::Timestamp;
