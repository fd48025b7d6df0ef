//! The HTTP edge: callbacks come in here and nowhere else.
//!
//! [`receive`] is the path of one callback, [`problem`] the table of refusals, [`router`] puts them behind
//! axum, [`admin`] shows the gateway's state to its operator.

pub(crate) mod admin;
pub(crate) mod in_flight;
pub(crate) mod problem;
mod receive;
mod router;

pub(crate) use router::{Edge, router};

#[cfg(test)]
mod tests;
