//! The suite.

pub mod make;
