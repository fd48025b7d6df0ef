//! A TCP proxy that misbehaves on request.
//!
//! Every connection is a task with a number. A cut is a number too: connections below it end, and who asked for
//! the cut waits until they have. The client's bytes pass the needle's watch on their way, the server's bytes a
//! flag that says whether they are still meant to arrive.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

const READ_BYTES_MAX: usize = 16 * 1024;
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long an answer is waited for that the client shall not see.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// When a connection is cut whose client sent what [`ChaosProxy::cut_when_client_sends`] looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The server never sees those bytes.
    BeforeSending,
    /// The bytes are sent on, and the connection is cut at once: whether the server acts on them is open.
    AfterSending,
    /// The server gets the bytes and answers, but the client never sees the answer. The answer is the next that
    /// the server sends, so this is for protocols that have one request on the way at a time. It is waited for
    /// for at most 10 s.
    SwallowAnswer,
}

/// A TCP proxy on a loopback port, between a client and the server that it is told.
///
/// It lives in the tokio runtime that started it. Dropping it cuts what it carries.
#[derive(Debug)]
pub struct ChaosProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    upstream: Mutex<SocketAddr>,
    refuse: AtomicBool,
    pause: watch::Sender<bool>,
    /// Connections with a smaller number end.
    cut_below: watch::Sender<u64>,
    open: watch::Sender<Open>,
    rule: Mutex<Option<Rule>>,
    cuts: AtomicUsize,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    numbers: BTreeSet<u64>,
}

#[derive(Debug)]
struct Rule {
    needle: Vec<u8>,
    times: usize,
    cut: Cut,
}

impl ChaosProxy {
    /// Listens on a free port and passes everything on to `upstream`.
    ///
    /// # Errors
    /// If no port can be had.
    pub async fn start(upstream: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream),
            refuse: AtomicBool::new(false),
            pause: watch::Sender::new(false),
            cut_below: watch::Sender::new(0),
            open: watch::Sender::new(Open::default()),
            rule: Mutex::new(None),
            cuts: AtomicUsize::new(0),
        });
        let acceptor = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self {
            address,
            shared,
            acceptor,
        })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Names the server that connections made from now on go to.
    pub fn set_upstream(&self, address: SocketAddr) {
        *lock(&self.shared.upstream) = address;
    }

    /// Resets every connection on both sides, and returns when they are gone.
    pub async fn cut_all(&self) {
        let next = self.shared.open.borrow().next;
        self.shared.cut_below.send_replace(next);
        let mut open = self.shared.open.subscribe();
        let gone = open
            .wait_for(|open| open.numbers.first().is_none_or(|first| *first >= next))
            .await;
        gone.expect("the sender is ours");
    }

    /// Whether new connections are reset as soon as they are made. Those that exist stay.
    pub fn refuse(&self, refuse: bool) {
        self.shared.refuse.store(refuse, Ordering::SeqCst);
    }

    /// Whether bytes stay where they are, in both directions, while connections seem to live. What is being
    /// sent on at this moment may still arrive.
    pub fn pause(&self, pause: bool) {
        self.shared.pause.send_replace(pause);
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.shared.open.borrow().numbers.len()
    }

    /// Cuts the next `times` connections whose client sends `needle`, also when it comes in pieces. Replaces
    /// what was asked for before; 0 times ends it.
    pub fn cut_when_client_sends(&self, needle: &[u8], times: usize, cut: Cut) {
        assert!(!needle.is_empty(), "every client sends nothing");
        *lock(&self.shared.rule) = Some(Rule {
            needle: needle.to_vec(),
            times,
            cut,
        });
    }

    /// How many connections were cut because of what their client sent, since the start.
    pub fn cuts(&self) -> usize {
        self.shared.cuts.load(Ordering::SeqCst)
    }
}

impl Drop for ChaosProxy {
    fn drop(&mut self) {
        self.acceptor.abort();
        self.shared.cut_below.send_replace(u64::MAX);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                eprintln!("the chaos proxy cannot accept: {error}");
                // Out of descriptors, most likely: some may come back.
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        if shared.refuse.load(Ordering::SeqCst) {
            reset(&client);
            continue;
        }
        let mut number = 0;
        shared.open.send_modify(|open| {
            number = open.next;
            open.next += 1;
            open.numbers.insert(number);
        });
        tokio::spawn(connection(client, number, Arc::clone(&shared)));
    }
}

async fn connection(mut client: TcpStream, number: u64, shared: Arc<Shared>) {
    let upstream = *lock(&shared.upstream);
    let mut cut = shared.cut_below.subscribe();
    let carried = async {
        let connected = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(upstream)).await;
        let Ok(Ok(mut server)) = connected else {
            return reset(&client);
        };
        // Neither changes more than the pace; a socket that is gone already shows at the next read.
        let _ = client.set_nodelay(true);
        let _ = server.set_nodelay(true);
        let ended = tokio::select! {
            ended = carry(&mut client, &mut server, &shared) => ended,
            _ = cut.wait_for(|below| number < *below) => Err(io::ErrorKind::ConnectionReset.into()),
        };
        if ended.is_err() {
            reset(&server);
            reset(&client);
        }
    };
    carried.await;
    drop(client);
    shared.open.send_modify(|open| {
        open.numbers.remove(&number);
    });
}

/// Passes bytes on until both sides have said that they are done. An error means that both are to be reset.
async fn carry(client: &mut TcpStream, server: &mut TcpStream, shared: &Shared) -> io::Result<()> {
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let muting = Muting::default();
    tokio::try_join!(
        requests(from_client, to_server, shared, &muting),
        answers(from_server, to_client, shared, &muting),
    )?;
    Ok(())
}

/// Whether the client no longer gets to see what the server says.
#[derive(Default)]
struct Muting {
    muted: AtomicBool,
    answered: Notify,
}

async fn requests(
    mut client: ReadHalf<'_>,
    mut server: WriteHalf<'_>,
    shared: &Shared,
    muting: &Muting,
) -> io::Result<()> {
    let mut chunk = vec![0; READ_BYTES_MAX];
    // The end of what was sent before, in which a needle may have begun.
    let mut before = Vec::new();
    loop {
        let count = client.read(&mut chunk).await?;
        if count == 0 {
            return server.shutdown().await;
        }
        unpaused(shared).await;
        let cut = shared.cut_for(&mut before, &chunk[..count]);
        if cut != Some(Cut::BeforeSending) {
            muting
                .muted
                .store(cut == Some(Cut::SwallowAnswer), Ordering::SeqCst);
            server.write_all(&chunk[..count]).await?;
        }
        if cut == Some(Cut::SwallowAnswer) {
            // An answer that never comes is not seen by the client either.
            let _ = tokio::time::timeout(ANSWER_LIMIT, muting.answered.notified()).await;
        }
        if cut.is_some() {
            shared.cuts.fetch_add(1, Ordering::SeqCst);
            return Err(io::ErrorKind::ConnectionReset.into());
        }
    }
}

async fn answers(
    mut server: ReadHalf<'_>,
    mut client: WriteHalf<'_>,
    shared: &Shared,
    muting: &Muting,
) -> io::Result<()> {
    let mut chunk = vec![0; READ_BYTES_MAX];
    loop {
        let count = server.read(&mut chunk).await?;
        if muting.muted.load(Ordering::SeqCst) {
            muting.answered.notify_one();
            if count == 0 {
                return Ok(());
            }
            continue;
        }
        if count == 0 {
            return client.shutdown().await;
        }
        unpaused(shared).await;
        client.write_all(&chunk[..count]).await?;
    }
}

impl Shared {
    /// Looks for the needle at the end of what a client sent. `before` is what the last look left, and is
    /// brought up to date.
    fn cut_for(&self, before: &mut Vec<u8>, chunk: &[u8]) -> Option<Cut> {
        let mut rule = lock(&self.rule);
        let rule = rule.as_mut()?;
        before.extend_from_slice(chunk);
        let found = rule.times > 0
            && before
                .windows(rule.needle.len())
                .any(|window| window == rule.needle);
        let kept = before.len().min(rule.needle.len() - 1);
        before.drain(..before.len() - kept);
        if found {
            rule.times -= 1;
        }
        found.then_some(rule.cut)
    }
}

async fn unpaused(shared: &Shared) {
    let mut pause = shared.pause.subscribe();
    pause
        .wait_for(|paused| !paused)
        .await
        .expect("the sender outlives its connections");
}

/// Makes the end of a connection a reset instead of a farewell.
fn reset(stream: &TcpStream) {
    // It fails only for a socket that is gone already, which is as good.
    let _ = stream.set_zero_linger();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
