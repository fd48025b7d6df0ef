//! `passline demo`: both services on a fresh directory, the vendors' documented
//! callbacks over real HTTP, and the log as it grows.
//!
//! Each delivery is sent, then its events are awaited on the live subscription;
//! in the end the books must account for every delivery. What was expected of
//! which delivery is a table in `steps.rs`, so the demo doubles as a check of
//! the whole path.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pass_proto::v1::pass_service_client::PassServiceClient;
use pass_proto::v1::subscribe_request::Start;
use pass_proto::v1::subscribe_response::Frame;
use pass_proto::v1::{
    GetLogInfoRequest, GetPassRequest, LogBooks, PassEvent, SubscribeRequest, SubscribeResponse,
};
use pass_sources::{SourceConfig, samples};
use service_kit::config::process_env;
use service_kit::grpc::Channel;
use tempfile::TempDir;
use tonic::Streaming;

use crate::args::DemoArgs;
use crate::config::Both;
use crate::post::{Answer, Sender};
use crate::render::{self, paint};
use crate::send::{Content, answer_text, deliver};
use crate::services::{Addresses, DataDir, Services, make_dir, signals};
use crate::up::{Up, program, start_telemetry, with_samples};
use crate::{Failure, Out, client, json, tail};

mod steps;

use steps::{STEPS, Sent, Step};

/// Time for everything up to the last line.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often the books are read until they account for everything.
const BOOKS_INTERVAL: Duration = Duration::from_millis(20);

/// Runs the command. As JSON: `{"delivery": …}` per answer, `{"cursor": …,
/// "event": …}` per event, and `{"demo": …}` at the end.
pub(crate) async fn run(args: DemoArgs, out: &mut Out) -> Result<(), Failure> {
    let mut interrupts = signals()?;
    let directory = Directory::new(args.data_dir)?;
    let env = process_env();
    let data_dir = DataDir::take(directory.path())?;
    let (mut both, sources) = with_samples(&data_dir, &env)?;
    for note in free_ports(&mut both) {
        out.text(&format!("{}\n", paint::notable(&note)))?;
    }
    let mut logs = both.gateway.telemetry.clone();
    if logs.log_filter == "info" {
        "warn".clone_into(&mut logs.log_filter);
    }
    let telemetry = start_telemetry(logs);
    let mut services = Services::start(both, data_dir, env).await?;

    let addresses = services.addresses;
    let shown = tokio::select! {
        shown = show(addresses, &sources, out) => shown,
        failure = services.ended() => Err(failure),
        () = interrupts.recv() => Err(Failure::Failed("interrupted".to_owned())),
    };
    let mut result = shown;
    if result.is_ok() && args.exit {
        let program = program();
        let line = format!(
            "\nTo go on: `{program} demo` stays up after the show, `{program} up` keeps its data.\n"
        );
        out.text(&paint::aside(&line))?;
    }
    if result.is_ok() && !args.exit {
        let up = Up {
            addresses,
            data_dir: directory.path(),
            sources: &sources,
            program: program(),
        };
        out.text(&format!(
            "\n{}\nStill up; end it with Ctrl-C.\n",
            up.to_try()
        ))?;
        tokio::select! {
            () = interrupts.recv() => {}
            failure = services.ended() => result = Err(failure),
        }
    }
    let stopped = services.stop(&mut interrupts).await;
    telemetry.shutdown().await;
    directory.remove()?;
    result.and(stopped)
}

/// Where the demo keeps its data.
enum Directory {
    Temporary(TempDir),
    Kept(PathBuf),
}

impl Directory {
    /// Makes a temporary directory, or takes one that is new or empty: what the
    /// demo expects holds only for a fresh log.
    fn new(kept: Option<PathBuf>) -> Result<Self, Failure> {
        let Some(path) = kept else {
            let made = tempfile::Builder::new().prefix("passline-demo-").tempdir();
            return match made {
                Ok(dir) => Ok(Self::Temporary(dir)),
                Err(error) => Err(Failure::Failed(format!("temporary directory: {error}"))),
            };
        };
        let is_empty =
            make_dir(&path).and_then(|()| Ok(std::fs::read_dir(&path)?.next().is_none()));
        match is_empty {
            Ok(true) => Ok(Self::Kept(path)),
            Ok(false) => Err(Failure::Usage(format!(
                "{} is not empty: the demo needs a fresh directory (`passline up --data-dir` goes on with one)",
                path.display()
            ))),
            Err(error) => Err(Failure::Failed(format!("{}: {error}", path.display()))),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Temporary(dir) => dir.path(),
            Self::Kept(path) => path,
        }
    }

    fn remove(self) -> Result<(), Failure> {
        match self {
            Self::Temporary(dir) => {
                let failed = |error| {
                    Failure::Failed(format!("the temporary directory can't be removed: {error}"))
                };
                dir.close().map_err(failed)
            }
            Self::Kept(_) => Ok(()),
        }
    }
}

/// Moves listeners whose port is taken to a free one, and says so.
fn free_ports(both: &mut Both) -> Vec<String> {
    let listeners: [&mut SocketAddr; 4] = [
        &mut both.gateway.http.listen,
        &mut both.gateway.admin.listen,
        &mut both.pass_state.grpc.listen,
        &mut both.pass_state.admin.listen,
    ];
    let mut notes = Vec::new();
    for listen in listeners {
        // Closed again at once: nothing was accepted, so the port is free for us.
        if TcpListener::bind(*listen).is_err_and(|error| error.kind() == ErrorKind::AddrInUse) {
            notes.push(format!("{listen} is taken; using a free port instead"));
            listen.set_port(0);
        }
    }
    notes
}

async fn show(
    addresses: Addresses,
    sources: &[SourceConfig],
    out: &mut Out,
) -> Result<(), Failure> {
    let mut awaited = "the subscription".to_owned();
    let playing = async {
        let mut show = Show::open(addresses, sources, out).await?;
        show.play(&mut awaited).await
    };
    match tokio::time::timeout(DEADLINE, playing).await {
        Ok(result) => result,
        Err(_) => Err(Failure::Failed(format!(
            "{} s passed while waiting for {awaited}",
            DEADLINE.as_secs()
        ))),
    }
}

struct Show<'a> {
    out: &'a mut Out,
    sources: &'a [SourceConfig],
    server: String,
    sender: Sender,
    passes: PassServiceClient<Channel>,
    stream: Streaming<SubscribeResponse>,
    events: Vec<PassEvent>,
}

impl<'a> Show<'a> {
    async fn open(
        addresses: Addresses,
        sources: &'a [SourceConfig],
        out: &'a mut Out,
    ) -> Result<Self, Failure> {
        let server = addresses.grpc.to_string();
        let channel = client::connect_locally(&server)?;
        let request = SubscribeRequest {
            start: Some(Start::FromBeginning(true)),
            ..SubscribeRequest::default()
        };
        let stream = tail::client(channel.clone())
            .subscribe(request)
            .await
            .map_err(|status| Failure::of_call(&server, &status))?
            .into_inner();
        Ok(Self {
            out,
            sources,
            sender: Sender::new(&addresses.callbacks.to_string(), None)?,
            passes: client::passes(channel),
            stream,
            events: Vec::new(),
            server,
        })
    }

    async fn play(&mut self, awaited: &mut String) -> Result<(), Failure> {
        let intro = format!(
            "{}\n\n{}",
            paint::heading("Vendors' documented callbacks, and the events they become"),
            render::event_header()
        );
        self.out.text(&intro)?;
        let mut sent: Vec<Sent> = Vec::with_capacity(STEPS.len());
        for step in STEPS {
            *awaited = format!("the answer to {} {}", step.source, step.sample);
            let answer = self.deliver(step).await?;
            *awaited = format!("the events of {} {}", step.source, step.sample);
            if answer.is_accepted() && answer.text("status") != "quarantined" {
                self.read_events(|events| {
                    steps::of_delivery(events, &answer).count() >= step.kinds.len()
                })
                .await?;
            }
            sent.push(Sent { step, answer });
        }
        "the books to account for every delivery".clone_into(awaited);
        let accepted = sent.iter().filter(|sent| sent.answer.is_accepted()).count();
        let books = self.books(accepted).await?;
        "the last events".clone_into(awaited);
        let recorded = usize::try_from(books.events).unwrap_or(usize::MAX);
        self.read_events(|events| events.len() >= recorded).await?;
        "a pass and its timeline".clone_into(awaited);
        self.show_busiest_pass().await?;
        let faults = steps::faults(&sent, &self.events, &books);
        self.show_result(&sent, &books, &faults)
    }

    async fn deliver(&mut self, step: &Step) -> Result<Answer, Failure> {
        let source = self
            .sources
            .iter()
            .find(|source| source.name == step.source);
        let (source, sample) = source
            .and_then(|source| Some((source, samples::find(&source.vendor, step.sample)?)))
            .ok_or_else(|| {
                Failure::Failed(format!("no sample {} of {}", step.sample, step.source))
            })?;
        let answer = deliver(&self.sender, source, &Content::of_sample(sample)).await?;
        let line = format!("{} {} {}", sample.method.name(), step.source, step.sample);
        let note = if step.note.is_empty() {
            String::new()
        } else {
            format!("  ({})", step.note)
        };
        self.out.text(&format!(
            "{} {}{}\n",
            paint::aside(&format!("  → {line:<52}")),
            answer_text(&answer),
            paint::aside(&note),
        ))?;
        self.out.object(&serde_json::json!({ "delivery": {
            "source": step.source,
            "sample": step.sample,
            "http_status": answer.status.as_u16(),
            "answer": answer.body,
        }}))?;
        Ok(answer)
    }

    /// Reads the live stream until `enough` events were seen.
    async fn read_events(&mut self, enough: impl Fn(&[PassEvent]) -> bool) -> Result<(), Failure> {
        while !enough(&self.events) {
            let message = self.stream.message().await;
            let message = message.map_err(|status| Failure::of_call(&self.server, &status))?;
            let message =
                message.ok_or_else(|| Failure::Failed("the subscription ended".to_owned()))?;
            let Some(Frame::Events(batch)) = message.frame else {
                continue;
            };
            for event in batch.events {
                self.out.text(&render::event_row(&event))?;
                self.out.object(&serde_json::json!({
                    "cursor": event.cursor,
                    "event": json::message("PassEvent", &event),
                }))?;
                self.events.push(event);
            }
        }
        Ok(())
    }

    /// Waits until every accepted delivery is in the books.
    async fn books(&mut self, accepted: usize) -> Result<LogBooks, Failure> {
        let mut interval = tokio::time::interval(BOOKS_INTERVAL);
        loop {
            interval.tick().await;
            let answer = self
                .passes
                .get_log_info(client::request(GetLogInfoRequest {}))
                .await;
            let info = answer
                .map_err(|status| Failure::of_call(&self.server, &status))?
                .into_inner();
            let books = info.books.unwrap_or_default();
            if usize::try_from(books.deliveries).is_ok_and(|deliveries| deliveries >= accepted) {
                return Ok(books);
            }
        }
    }

    async fn show_busiest_pass(&mut self) -> Result<(), Failure> {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for event in &self.events {
            *counts.entry(&event.pass).or_default() += 1;
        }
        let busiest = counts
            .into_iter()
            .max_by_key(|(name, count)| (*count, *name));
        let Some(name) = busiest.map(|(name, _)| name.to_owned()) else {
            return Ok(());
        };
        let refused = |status| Failure::of_call(&self.server, &status);
        let request = GetPassRequest {
            name: name.clone(),
            ..GetPassRequest::default()
        };
        let answer = self
            .passes
            .get_pass(client::request(request))
            .await
            .map_err(refused)?;
        let pass = answer.into_inner().pass.unwrap_or_default();
        let (events, _) = client::events(&mut self.passes, &name)
            .await
            .map_err(refused)?;
        self.out.text(&format!(
            "\n{}\n{}",
            render::pass(&pass),
            render::timeline(&events)
        ))?;
        Ok(())
    }

    fn show_result(
        &mut self,
        sent: &[Sent],
        books: &LogBooks,
        faults: &[String],
    ) -> Result<(), Failure> {
        self.out.text(&format!(
            "\n{}\n{}",
            paint::heading("The books"),
            render::books(books)
        ))?;
        self.out.object(&serde_json::json!({ "demo": {
            "deliveries": sent.len(),
            "events": self.events.len(),
            "books": json::message("LogBooks", books),
            "faults": faults,
        }}))?;
        if faults.is_empty() {
            let line = format!(
                "{} deliveries sent, all answered 200; {} events, as expected",
                sent.len(),
                self.events.len()
            );
            self.out.text(&format!("  {}\n", paint::good(&line)))?;
            return Ok(());
        }
        Err(Failure::Failed(format!(
            "not as expected:\n  {}",
            faults.join("\n  ")
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_holds_something_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("new");
        assert!(
            Directory::new(Some(inside.clone())).is_ok(),
            "a new one is made"
        );
        std::fs::write(inside.join("precious"), "x").unwrap();
        let failure = Directory::new(Some(inside)).err().unwrap();
        assert_eq!(failure.exit_code(), 64);
    }

    #[test]
    fn a_temporary_directory_is_gone_afterwards() {
        let directory = Directory::new(None).unwrap();
        let path = directory.path().to_owned();
        assert!(path.is_dir());
        directory.remove().unwrap();
        assert!(!path.exists());
    }
}
