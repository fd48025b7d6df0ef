//! Messages of the API as text for people. Pure functions; what they return may
//! carry colours, which [`crate::Out`] takes out where they can't be shown.
//!
//! Whatever a vendor or a server sent goes through [`words::plain`], so that it
//! can neither break a line nor send a terminal escape sequences.

mod delivery;
mod event;
mod log;
pub(crate) mod paint;
mod pass;
pub(crate) mod words;

pub(crate) use delivery::delivery;
pub(crate) use event::{event_header, event_row};
pub(crate) use log::{books, imbalance};
pub(crate) use pass::{pass, timeline};

#[cfg(test)]
mod tests;
