//! `passline tail`: the log, live and resumable.
//!
//! The last cursor that was dealt with is kept across reconnects, so nothing is
//! missed and nothing is shown twice; where the server says that this cannot
//! hold (another history, an expired cursor) the command ends with its reason.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use pass_proto::status::{Reason, reason_of};
use pass_proto::v1::subscribe_request::Start;
use pass_proto::v1::subscribe_response::Frame;
use pass_proto::v1::subscription_service_client::SubscriptionServiceClient;
use pass_proto::v1::{SubscribeRequest, SubscribeResponse};
use service_kit::grpc::Channel;
use tonic::{Code, Status, Streaming};

use crate::args::TailArgs;
use crate::client::{self, MESSAGE_BYTES_MAX};
use crate::render::{self, paint, words};
use crate::{Failure, Out, json, services, up};

/// Ceiling of the first pause before a reconnect; doubles with each failure.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Ceiling of all such pauses.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Runs the command until the log's end (`--stop-at-head`), a signal or a
/// failure. As JSON every line has a `cursor`, and one for an event an `event`.
pub(crate) async fn run(args: TailArgs, out: &mut Out) -> Result<(), Failure> {
    let mut interrupts = services::signals()?;
    let mut tail = Tail {
        client: client(client::connect(&args.server)?),
        place: Place::new(&args),
        args,
    };
    out.text(&render::event_header())?;
    let ended = tokio::select! {
        ended = tail.follow(out) => ended,
        () = interrupts.recv() => Ok(()),
    };
    tail.say_goodbye(out)?;
    ended
}

/// A client of the subscription service.
pub(crate) fn client(channel: Channel) -> SubscriptionServiceClient<Channel> {
    SubscriptionServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

struct Tail {
    client: SubscriptionServiceClient<Channel>,
    place: Place,
    args: TailArgs,
}

impl Tail {
    async fn follow(&mut self, out: &mut Out) -> Result<(), Failure> {
        let mut failures = 0_u32;
        let mut connected = false;
        loop {
            let request = SubscribeRequest {
                start: Some(self.place.start()),
                filter: self.args.filter.clone(),
                stop_at_head: self.args.stop_at_head,
                ..SubscribeRequest::default()
            };
            let status = match self.client.subscribe(request).await {
                Ok(stream) => match self
                    .read(stream.into_inner(), out, &mut failures, &mut connected)
                    .await?
                {
                    None => return Ok(()),
                    Some(status) => status,
                },
                Err(status) => status,
            };
            if !connected || !is_temporary(&status) {
                return Err(Failure::of_call(&self.args.server.url, &status));
            }
            let pause = pause(failures, RandomState::new().hash_one(failures));
            failures = failures.saturating_add(1);
            if failures == 1 {
                let reason = words::plain(status.message());
                anstream::eprintln!(
                    "passline: interrupted ({reason}); going on after the last cursor"
                );
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Reads one stream; `None` when it ended with OK.
    async fn read(
        &mut self,
        mut stream: Streaming<SubscribeResponse>,
        out: &mut Out,
        failures: &mut u32,
        connected: &mut bool,
    ) -> Result<Option<Status>, Failure> {
        loop {
            let frame = match stream.message().await {
                Ok(Some(message)) => message.frame,
                Ok(None) if self.args.stop_at_head => return Ok(None),
                Ok(None) => return Ok(Some(Status::unavailable("the stream ended"))),
                Err(status) => return Ok(Some(status)),
            };
            *connected = true;
            *failures = 0;
            if let Some(frame) = frame {
                show(&frame, out)?;
                self.place.advance(&frame);
            }
        }
    }

    /// The command that goes on where this one stops.
    fn resumption(&self, cursor: &str) -> String {
        let mut command = format!(
            "{} tail --after {}",
            up::program(),
            up::shell_quoted(&words::plain(cursor))
        );
        if !self.args.filter.is_empty() {
            command.push_str(&format!(
                " --filter {}",
                up::shell_quoted(&self.args.filter)
            ));
        }
        let server = &self.args.server;
        if server.url != up::SERVER_DEFAULT {
            command.push_str(&format!(" --server {}", up::shell_quoted(&server.url)));
        }
        if let Some(name) = &server.server_name {
            command.push_str(&format!(" --server-name {}", up::shell_quoted(name)));
        }
        for (option, file) in [
            ("--ca-file", &server.ca_file),
            ("--cert-file", &server.cert_file),
            ("--key-file", &server.key_file),
            ("--token-file", &server.token_file),
        ] {
            if let Some(file) = file {
                let file = up::shell_quoted(&file.to_string_lossy());
                command.push_str(&format!(" {option} {file}"));
            }
        }
        command
    }

    fn say_goodbye(&self, out: &mut Out) -> Result<(), Failure> {
        if let Some(cursor) = &self.place.cursor {
            out.object(&serde_json::json!({ "cursor": cursor }))?;
            let command = self.resumption(cursor);
            out.text(&format!("to go on from here: {}\n", paint::typed(&command)))?;
        }
        Ok(())
    }
}

fn show(frame: &Frame, out: &mut Out) -> Result<(), Failure> {
    match frame {
        Frame::Events(batch) => {
            for event in &batch.events {
                out.text(&render::event_row(event))?;
                if out.is_json() {
                    out.object(&serde_json::json!({
                        "cursor": event.cursor,
                        "event": json::message("PassEvent", event),
                    }))?;
                }
            }
        }
        Frame::Bookmark(bookmark) => {
            out.object(&serde_json::json!({ "cursor": bookmark.cursor }))?
        }
        Frame::FellBehind(_) => {
            out.text(&paint::aside(
                "(too slow for live events; reading pages to catch up)\n",
            ))?;
        }
        Frame::Started(_) | Frame::CaughtUp(_) | Frame::Closing(_) => {}
    }
    Ok(())
}

/// Where the next subscription starts.
#[derive(Debug)]
struct Place {
    from_beginning: bool,
    cursor: Option<String>,
}

impl Place {
    fn new(args: &TailArgs) -> Self {
        Self {
            from_beginning: args.from_beginning,
            cursor: args.after.clone(),
        }
    }

    fn start(&self) -> Start {
        match &self.cursor {
            Some(cursor) => Start::AfterCursor(cursor.clone()),
            None if self.from_beginning => Start::FromBeginning(true),
            None => Start::FromEnd(true),
        }
    }

    /// Moves on past a frame that was dealt with. The place where a stream from
    /// the end starts counts too: what is recorded during an interruption is new.
    fn advance(&mut self, frame: &Frame) {
        let cursor = match frame {
            Frame::Started(frame) => &frame.start_cursor,
            Frame::Events(frame) => &frame.cursor,
            Frame::Bookmark(frame) => &frame.cursor,
            Frame::CaughtUp(frame) => &frame.cursor,
            Frame::FellBehind(frame) => &frame.cursor,
            Frame::Closing(frame) => &frame.cursor,
        };
        if !cursor.is_empty() {
            self.cursor = Some(cursor.clone());
        }
    }
}

/// Says whether going on after the last cursor can be expected to work: the
/// server or the connection went away, or this side was cut for being slow.
fn is_temporary(status: &Status) -> bool {
    match reason_of(status) {
        Some(reason) => status.code() == Code::Unavailable || reason == Reason::SubscriberStalled,
        // Without a reason the status was made by the transport.
        None => matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled
        ),
    }
}

/// A pause drawn evenly from nothing to a ceiling that doubles with each failure.
fn pause(failures: u32, random: u64) -> Duration {
    let ceiling = PAUSE_MIN
        .saturating_mul(1 << failures.min(10))
        .min(PAUSE_MAX);
    let micros = u64::try_from(ceiling.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(random % micros.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pass_proto::status::Fault;
    use pass_proto::v1;

    fn place(line: &str) -> Place {
        use clap::Parser as _;
        let cli = crate::args::Cli::try_parse_from(line.split_whitespace()).unwrap();
        let crate::args::Command::Tail(args) = cli.command else {
            panic!("not tail")
        };
        Place::new(&args)
    }

    #[test]
    fn a_reconnect_goes_on_after_the_last_frame_whatever_the_start_was() {
        for (line, first) in [
            ("passline tail", Start::FromEnd(true)),
            ("passline tail --from-beginning", Start::FromBeginning(true)),
            ("passline tail --after c0", Start::AfterCursor("c0".into())),
        ] {
            let mut place = place(line);
            assert_eq!(place.start(), first, "{line}");
            place.advance(&Frame::Started(v1::SubscriptionStarted {
                start_cursor: "c1".into(),
                ..v1::SubscriptionStarted::default()
            }));
            assert_eq!(place.start(), Start::AfterCursor("c1".into()));
            place.advance(&Frame::Events(v1::SubscriptionEvents {
                cursor: "c2".into(),
                events: Vec::new(),
            }));
            place.advance(&Frame::Closing(v1::SubscriptionClosing::default()));
            assert_eq!(place.start(), Start::AfterCursor("c2".into()));
        }
    }

    #[test]
    fn only_interruptions_are_retried() {
        for reason in [
            Reason::StreamRotated,
            Reason::ServerDraining,
            Reason::StoreUnavailable,
            Reason::SubscriberStalled,
        ] {
            assert!(is_temporary(&Fault::new(reason, "x").into()), "{reason:?}");
        }
        for reason in [
            Reason::CursorExpired,
            Reason::CursorAhead,
            Reason::CursorEpochMismatch,
            Reason::FilterInvalid,
            Reason::Internal,
        ] {
            assert!(!is_temporary(&Fault::new(reason, "x").into()), "{reason:?}");
        }
        assert!(is_temporary(&Status::unknown("transport error")));
        assert!(!is_temporary(&Status::unimplemented("no such service")));
    }

    #[test]
    fn pauses_grow_to_a_ceiling() {
        assert!(pause(0, u64::MAX) < PAUSE_MIN);
        for failures in 0..100 {
            assert!(pause(failures, u64::MAX) < PAUSE_MAX);
        }
        assert_eq!(pause(50, 4_999_999), Duration::from_micros(4_999_999));
    }
}
