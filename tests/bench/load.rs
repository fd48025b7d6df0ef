//! A load generator on one thread: keep-alive connections, closed loop or open loop.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use service_kit::tls::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

/// What a run of the load saw.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// Answers 200.
    pub(crate) ok: u64,
    /// Other answers and broken connections.
    pub(crate) failed: u64,
    /// Those of them that were answered 503: the server says that it has too much at once.
    pub(crate) busy: u64,
    /// From the first request to the last answer.
    pub(crate) elapsed: Duration,
    /// Latencies in microseconds.
    pub(crate) micros: Vec<u32>,
}

impl Run {
    /// Answers 200 per second.
    pub(crate) fn rate(&self) -> f64 {
        self.ok as f64 / self.elapsed.as_secs_f64()
    }
}

/// One keep-alive connection.
pub(crate) struct Connection {
    stream: Stream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects, trying for ten seconds.
    pub(crate) async fn open(address: SocketAddr) -> Result<Self> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(Self::over(Stream::Plain(stream)));
                }
                Err(error) if Instant::now() > deadline => {
                    return Err(error).context(format!("connect to {address}"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Takes a connection that stands.
    pub(crate) fn over(stream: Stream) -> Self {
        Self {
            stream,
            buffer: vec![0; 4096],
        }
    }

    /// Sends one request and reads its answer's status.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> Result<u16> {
        self.stream.write_all(request).await?;
        let mut filled = 0;
        loop {
            let read = self.stream.read(&mut self.buffer[filled..]).await?;
            if read == 0 {
                bail!("the server closed the connection");
            }
            filled += read;
            let seen = &self.buffer[..filled];
            if let Some(head) = find(seen, b"\r\n\r\n") {
                let length = content_length(&seen[..head])?;
                if filled >= head + 4 + length {
                    let status = std::str::from_utf8(&seen[9..12])?.parse()?;
                    return Ok(status);
                }
            }
            if filled == self.buffer.len() {
                self.buffer.resize(filled * 2, 0);
            }
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

fn content_length(head: &[u8]) -> Result<usize> {
    for line in head.split(|byte| *byte == b'\n') {
        if line.len() > 15 && line[..15].eq_ignore_ascii_case(b"content-length:") {
            return Ok(std::str::from_utf8(&line[15..])?.trim().parse()?);
        }
    }
    Ok(0)
}

/// Sends the requests over `connections` connections, each as soon as the last is answered, for `time` or
/// until there are no more.
pub(crate) async fn closed_loop(
    address: SocketAddr,
    connections: usize,
    time: Duration,
    requests: &Rc<Vec<Vec<u8>>>,
) -> Result<Run> {
    let mut opened = Vec::with_capacity(connections);
    for _ in 0..connections {
        opened.push(Connection::open(address).await?);
    }
    closed_loop_over(opened, time, requests).await
}

/// The same over connections that stand.
pub(crate) async fn closed_loop_over(
    opened: Vec<Connection>,
    time: Duration,
    requests: &Rc<Vec<Vec<u8>>>,
) -> Result<Run> {
    let next = Rc::new(Cell::new(0_usize));
    let run = Rc::new(RefCell::new(Run::default()));
    let start = Instant::now();
    let local = LocalSet::new();
    for mut connection in opened {
        let (next, run, requests) = (Rc::clone(&next), Rc::clone(&run), Rc::clone(requests));
        local.spawn_local(async move {
            while start.elapsed() < time {
                let at = next.get();
                let Some(request) = requests.get(at) else {
                    break;
                };
                next.set(at + 1);
                let sent = Instant::now();
                let answer = connection.ask(request).await;
                let mut run = run.borrow_mut();
                match answer {
                    Ok(200) => {
                        run.ok += 1;
                        run.micros
                            .push(u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX));
                    }
                    Ok(_) => run.failed += 1,
                    Err(_) => {
                        run.failed += 1;
                        break;
                    }
                }
            }
        });
    }
    local.await;
    let mut run = run.take();
    run.elapsed = start.elapsed();
    Ok(run)
}

/// Sends the requests at a fixed rate, whatever the answers; tells each one's due time.
pub(crate) async fn open_loop(
    address: SocketAddr,
    rate: f64,
    requests: Vec<Vec<u8>>,
    due: impl Fn(usize, Instant) + 'static,
) -> Result<Run> {
    let connections = 128;
    let mut opened = Vec::with_capacity(connections);
    for _ in 0..connections {
        opened.push(Connection::open(address).await?);
    }
    let idle = Rc::new(RefCell::new(opened));
    let run = Rc::new(RefCell::new(Run::default()));
    let start = Instant::now();
    let local = LocalSet::new();
    local
        .run_until(async {
            let mut tasks = Vec::with_capacity(requests.len());
            for (at, request) in requests.into_iter().enumerate() {
                let when = start + Duration::from_secs_f64(at as f64 / rate);
                tokio::time::sleep_until(when.into()).await;
                due(at, when);
                let (idle, run) = (Rc::clone(&idle), Rc::clone(&run));
                tasks.push(tokio::task::spawn_local(async move {
                    let taken = idle.borrow_mut().pop();
                    let connection = match taken {
                        Some(connection) => Ok(connection),
                        None => Connection::open(address).await,
                    };
                    let answer = match connection {
                        Ok(mut connection) => {
                            let answer = connection.ask(&request).await;
                            if answer.is_ok() {
                                idle.borrow_mut().push(connection);
                            }
                            answer
                        }
                        Err(error) => Err(error),
                    };
                    let mut run = run.borrow_mut();
                    if matches!(answer, Ok(200)) {
                        run.ok += 1;
                        run.micros
                            .push(u32::try_from(when.elapsed().as_micros()).unwrap_or(u32::MAX));
                    } else {
                        run.failed += 1;
                        run.busy += u64::from(matches!(answer, Ok(503)));
                    }
                }));
            }
            for task in tasks {
                task.await.context("a sender panicked")?;
            }
            anyhow::Ok(())
        })
        .await?;
    let mut run = run.take();
    run.elapsed = start.elapsed();
    Ok(run)
}
