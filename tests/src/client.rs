//! A sender of callbacks that remembers every attempt and what was answered: one half of what the oracle
//! compares.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::callback::{Callback, traffic};
use crate::dice::Dice;
use crate::tls::Pki;

/// Longest wait for one answer. Longer than the gateway takes to give up on a disk.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// Longest time until a callback is stored, kills of services in between included.
const STORED_LIMIT: Duration = Duration::from_secs(60);
/// Pause of a sender of endless traffic after each callback.
const SENDER_PAUSE: Duration = Duration::from_millis(4);

/// What one attempt came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 200: the gateway promised to keep it.
    Stored(Receipt),
    /// Certainly not kept: no connection, or a 4xx.
    Refused(String),
    /// Kept or not: a 5xx, or a connection that broke after the request began.
    Indeterminate(String),
}

/// The body of a 200.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default)]
pub struct Receipt {
    /// The delivery's id, `del_…`.
    pub delivery: String,
    /// `stored`, `applied`, `duplicate` or `quarantined`.
    pub status: String,
    /// Ids of the events, `evt_…`.
    pub events: Vec<String>,
}

/// One attempt to deliver a callback.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// What was sent.
    pub callback: Arc<Callback>,
    /// What came of it.
    pub outcome: Outcome,
}

/// Every attempt of a test, in the order in which they ended. Only ever appended to.
#[derive(Debug, Default)]
pub struct ClientLog(Mutex<Vec<Attempt>>);

impl ClientLog {
    /// Notes an attempt.
    pub fn note(&self, callback: &Arc<Callback>, outcome: Outcome) {
        self.lock().push(Attempt {
            callback: Arc::clone(callback),
            outcome,
        });
    }

    /// A copy of all attempts so far.
    pub fn attempts(&self) -> Vec<Attempt> {
        self.lock().clone()
    }

    /// How many attempts were answered with 200.
    pub fn stored_count(&self) -> usize {
        self.lock()
            .iter()
            .filter(|attempt| matches!(attempt.outcome, Outcome::Stored(_)))
            .count()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Attempt>> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// An answer in full.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: http::HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// The request was certainly not sent.
    NotSent(String),
    /// It was sent in part or whole.
    Lost(String),
}

/// One keep-alive connection to a gateway, opened anew when it breaks; with several gateways, to the next one,
/// as through a balancer.
#[derive(Debug)]
pub struct Caller {
    addresses: Vec<SocketAddr>,
    /// Which of them it calls.
    current: usize,
    tls: Option<Arc<Pki>>,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Caller {
    /// Makes a caller; it connects when first used.
    pub fn new(address: SocketAddr) -> Self {
        Self::balanced(&[address], 0)
    }

    /// Makes a caller of several gateways that begins with one of them, which is counted around.
    ///
    /// # Panics
    /// If there are none.
    pub fn balanced(addresses: &[SocketAddr], first: usize) -> Self {
        Self {
            addresses: addresses.to_vec(),
            current: first % addresses.len(),
            tls: None,
            connection: None,
        }
    }

    /// Speaks TLS, trusting whom these trust when a connection begins.
    #[must_use]
    pub fn with_tls(mut self, pki: Option<&Arc<Pki>>) -> Self {
        self.tls = pki.cloned();
        self
    }

    /// Goes on to the next gateway.
    fn turn(&mut self) {
        if self.addresses.len() > 1 {
            self.current = (self.current + 1) % self.addresses.len();
            self.connection = None;
        }
    }

    /// Sends a callback once and notes what came of it.
    pub async fn deliver(&mut self, callback: &Arc<Callback>, log: &ClientLog) -> Outcome {
        let outcome = match self.post(callback).await {
            Ok(answer) => outcome_of(&answer),
            Err(NoAnswer::NotSent(why)) => Outcome::Refused(why),
            Err(NoAnswer::Lost(why)) => Outcome::Indeterminate(why),
        };
        log.note(callback, outcome.clone());
        outcome
    }

    /// Sends a callback as often as it takes to get a 200, as a patient vendor does, until `deadline`.
    pub async fn deliver_until_stored(
        &mut self,
        callback: &Arc<Callback>,
        log: &ClientLog,
        deadline: Instant,
    ) -> bool {
        loop {
            if matches!(self.deliver(callback, log).await, Outcome::Stored(_)) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            self.turn();
            // A vendor that hammers a gateway which is just starting proves nothing.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Sends a callback once.
    ///
    /// # Errors
    /// Says whether the request was certainly not sent.
    pub async fn post(&mut self, callback: &Callback) -> Result<Answer, NoAnswer> {
        let mut request = Request::builder()
            .method(callback.method.clone())
            .uri(callback.path());
        for (name, value) in &callback.headers {
            request = request.header(name, value);
        }
        self.send(request, callback.body.clone()).await
    }

    /// Sends any request.
    ///
    /// # Errors
    /// Says whether the request was certainly not sent.
    pub async fn send(
        &mut self,
        request: http::request::Builder,
        body: Bytes,
    ) -> Result<Answer, NoAnswer> {
        let request = request
            .header(HOST, self.addresses[self.current].to_string())
            .header(CONTENT_LENGTH, body.len())
            .body(Full::new(body))
            .map_err(|error| NoAnswer::NotSent(error.to_string()))?;
        match tokio::time::timeout(ANSWER_LIMIT, Box::pin(self.send_now(request))).await {
            Ok(answer) => answer,
            Err(_) => {
                self.connection = None;
                Err(NoAnswer::Lost(format!("no answer within {ANSWER_LIMIT:?}")))
            }
        }
    }

    /// Sends a request; once more where the kept connection was closed before the request went out, as every client does.
    async fn send_now(&mut self, mut request: Request<Full<Bytes>>) -> Result<Answer, NoAnswer> {
        loop {
            let kept = match &mut self.connection {
                Some(open) => open.ready().await.is_ok(),
                None => false,
            };
            if !kept {
                self.connection = Some(Box::pin(self.connect()).await?);
            }
            let connection = self
                .connection
                .as_mut()
                .expect("it was just opened if it was not");
            match connection.try_send_request(request).await {
                Ok(answer) => return self.read(answer).await,
                Err(mut error) => {
                    self.connection = None;
                    // Only what was not sent comes back.
                    match error.take_message() {
                        Some(same) if kept => request = same,
                        Some(_) => return Err(NoAnswer::NotSent(error.into_error().to_string())),
                        None => return Err(NoAnswer::Lost(error.into_error().to_string())),
                    }
                }
            }
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, NoAnswer> {
        let address = self.addresses[self.current];
        match &self.tls {
            None => connect(address).await,
            Some(pki) => {
                let stream = pki.https(address).await;
                shake_hands(stream.map_err(|error| NoAnswer::NotSent(format!("{error:#}")))?).await
            }
        }
    }

    async fn read(&mut self, answer: Response<Incoming>) -> Result<Answer, NoAnswer> {
        let (head, body) = answer.into_parts();
        match body.collect().await {
            Ok(body) => Ok(Answer {
                status: head.status,
                headers: head.headers,
                body: body.to_bytes(),
            }),
            Err(error) => {
                self.connection = None;
                Err(NoAnswer::Lost(error.to_string()))
            }
        }
    }

    /// Closes the connection, so that the next request goes over a fresh one.
    pub fn close(&mut self) {
        self.connection = None;
    }
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>, NoAnswer> {
    let refused = |error: &dyn std::fmt::Display| NoAnswer::NotSent(error.to_string());
    let socket = TcpStream::connect(address)
        .await
        .map_err(|error| refused(&error))?;
    socket.set_nodelay(true).map_err(|error| refused(&error))?;
    shake_hands(socket).await
}

async fn shake_hands<S>(socket: S) -> Result<SendRequest<Full<Bytes>>, NoAnswer>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(socket))
        .await
        .map_err(|error| NoAnswer::NotSent(error.to_string()))?;
    // It ends with the socket; what goes wrong there shows in the request.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}

/// Reads an answer as a vendor does: 2xx is kept, 4xx is not, anything else is unknown.
fn outcome_of(answer: &Answer) -> Outcome {
    let text = || {
        let body = String::from_utf8_lossy(&answer.body);
        format!(
            "{}: {}",
            answer.status,
            body.chars().take(200).collect::<String>()
        )
    };
    if answer.status == StatusCode::OK {
        match serde_json::from_slice::<Receipt>(&answer.body) {
            Ok(receipt) => Outcome::Stored(receipt),
            // A 200 is a promise whatever its body looks like; the oracle stumbles over the empty id.
            Err(_) => Outcome::Stored(Receipt::default()),
        }
    } else if answer.status.is_client_error() {
        Outcome::Refused(text())
    } else {
        Outcome::Indeterminate(text())
    }
}

/// Made-up traffic without end, and the senders that send it.
#[derive(Debug)]
pub struct Senders {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<bool>>,
}

impl Senders {
    /// Starts `connections` senders of traffic made up from a seed, each callback until it is stored, with a
    /// short pause after each, so that the history stays small enough to be judged.
    ///
    /// # Panics
    /// If there is no gateway.
    pub fn start(
        gateways: &[SocketAddr],
        tls: Option<&Arc<Pki>>,
        seed: u64,
        tag: &str,
        connections: usize,
        log: &Arc<ClientLog>,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = (0..connections)
            .map(|connection| {
                let mut dice = Dice::new(seed ^ ((connection as u64 + 1) << 32));
                let tag = format!("{tag}-{connection}");
                let (stop, log) = (Arc::clone(&stop), Arc::clone(log));
                let mut caller = Caller::balanced(gateways, connection).with_tls(tls);
                tokio::spawn(async move {
                    for chunk in 0_u64.. {
                        for callback in traffic(&mut dice, &format!("{tag}-{chunk}"), 10) {
                            if stop.load(Ordering::Relaxed) {
                                return true;
                            }
                            let deadline = Instant::now() + STORED_LIMIT;
                            if !caller.deliver_until_stored(&callback, &log, deadline).await {
                                return false;
                            }
                            tokio::time::sleep(SENDER_PAUSE).await;
                        }
                    }
                    true
                })
            })
            .collect();
        Self { stop, tasks }
    }

    /// Lets each sender finish its callback; true if every callback was stored within a minute.
    pub async fn finish(mut self) -> bool {
        self.stop.store(true, Ordering::Relaxed);
        let mut all_stored = true;
        for task in std::mem::take(&mut self.tasks) {
            all_stored &= task.await.expect("senders do not panic");
        }
        all_stored
    }
}

impl Drop for Senders {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Sends `callbacks` over `connections` connections, each until it is stored or `deadline` passes. Returns
/// how many were never stored.
///
/// The callbacks of one list keep their order only with one connection, as with a real vendor.
///
/// # Panics
/// If there is no gateway.
pub async fn load(
    gateways: &[SocketAddr],
    tls: Option<&Arc<Pki>>,
    callbacks: Vec<Arc<Callback>>,
    connections: usize,
    log: &Arc<ClientLog>,
    deadline: Instant,
) -> usize {
    let queue = Arc::new(Mutex::new(VecDeque::from(callbacks)));
    let senders: Vec<_> = (0..connections)
        .map(|connection| {
            let (queue, log) = (Arc::clone(&queue), Arc::clone(log));
            let mut caller = Caller::balanced(gateways, connection).with_tls(tls);
            tokio::spawn(async move {
                let mut unsent = 0;
                loop {
                    let next = queue
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .pop_front();
                    let Some(callback) = next else { break unsent };
                    if !caller.deliver_until_stored(&callback, &log, deadline).await {
                        unsent += 1;
                    }
                }
            })
        })
        .collect();
    let mut unsent = 0;
    for sender in senders {
        unsent += sender.await.expect("senders do not panic");
    }
    unsent
}
