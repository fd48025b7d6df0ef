//! Why a command ends without success, and with which exit code.

use std::io;

use pass_proto::status::{reason_name, reason_of};
use service_kit::EXIT_USAGE;
use tonic::{Code, Status};

use crate::render::words::plain;

/// Why a command failed. The text is for the person who typed it.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command or a configuration is wrong; exit code 64.
    #[error("{0}")]
    Usage(String),
    /// The command was right but could not do its work; exit code 1.
    #[error("{0}")]
    Failed(String),
    /// Standard output can't be written to; exit code 1, or 0 where its reader
    /// merely went away.
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    /// The process's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => EXIT_USAGE,
            Self::Failed(_) => 1,
            Self::Output(error) => u8::from(error.kind() != io::ErrorKind::BrokenPipe),
        }
    }

    /// Says whether there is nobody left to tell.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// What a call to `server` ended with.
    pub(crate) fn of_call(server: &str, status: &Status) -> Self {
        if is_unreachable(status) {
            return Self::Failed(format!(
                "nobody answers at {server}: start one with `passline up`, or name another with --server"
            ));
        }
        let reason = reason_of(status).map_or_else(
            || format!("{:?}", status.code()),
            |reason| reason_name(reason).to_owned(),
        );
        Self::Failed(format!("{}: {}", reason, plain(status.message())))
    }
}

/// Says whether a status was made on this side because no connection came about.
pub(crate) fn is_unreachable(status: &Status) -> bool {
    reason_of(status).is_none()
        && matches!(status.code(), Code::Unavailable | Code::Unknown)
        && std::error::Error::source(status).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pass_proto::status::{Fault, Reason};

    #[test]
    fn exit_codes_tell_usage_from_failure_and_a_closed_pipe_is_neither() {
        assert_eq!(Failure::Usage("x".into()).exit_code(), 64);
        assert_eq!(Failure::Failed("x".into()).exit_code(), 1);
        let full = Failure::Output(io::ErrorKind::StorageFull.into());
        assert_eq!((full.exit_code(), full.is_silent()), (1, false));
        let closed = Failure::Output(io::ErrorKind::BrokenPipe.into());
        assert_eq!((closed.exit_code(), closed.is_silent()), (0, true));
    }

    #[test]
    fn a_refused_call_names_its_reason_and_text_from_the_wire_stays_on_its_line() {
        let status = Status::from(Fault::new(
            Reason::CursorAhead,
            "cursor\nis \u{1b}[31mahead",
        ));
        assert_eq!(
            Failure::of_call("http://h:1", &status).to_string(),
            "CURSOR_AHEAD: cursor�is �[31mahead"
        );
    }
}
