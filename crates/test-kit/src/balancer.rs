//! A TCP balancer that follows readiness, as a Kubernetes Service in front of pods does.
//!
//! It chooses for each new connection among the backends that were ready when it last looked, and leaves connections
//! alone that it has made: whether those are ended without harm is what tests are about.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::wait_for;

/// How often each backend is looked at.
const PROBE_INTERVAL: Duration = Duration::from_millis(200);
/// Longest wait for the answer of one, so long that a busy machine does not make it unready.
const PROBE_LIMIT: Duration = Duration::from_secs(5);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Longest answer of a probe that is read.
const ANSWER_BYTES_MAX: u64 = 16 << 10;

/// One of the servers behind a balancer.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    /// Where connections go.
    pub address: SocketAddr,
    /// Where `/readyz` is asked.
    pub admin: SocketAddr,
}

/// What a balancer knows and has done.
#[derive(Clone, Debug, Default)]
pub struct Balanced {
    /// Whether each backend was ready when it was last looked at.
    pub ready: Vec<bool>,
    /// Connections that each has been given.
    pub connections: Vec<usize>,
    /// Connections that were reset because nobody was ready.
    pub refused: usize,
}

/// A TCP balancer on a loopback port.
///
/// It lives in the tokio runtime that started it. Dropping it cuts what it carries.
#[derive(Debug)]
pub struct Balancer {
    address: SocketAddr,
    shared: Arc<Shared>,
    // Dropped with the balancer, and all tasks with it.
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    backends: Vec<Backend>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    balanced: Balanced,
    next: usize,
}

impl Balancer {
    /// Listens on a free port and looks at every backend; none is ready until then.
    ///
    /// # Errors
    /// If no port can be had.
    pub async fn start(backends: &[Backend]) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let balanced = Balanced {
            ready: vec![false; backends.len()],
            connections: vec![0; backends.len()],
            refused: 0,
        };
        let shared = Arc::new(Shared {
            backends: backends.to_vec(),
            known: Mutex::new(Known { balanced, next: 0 }),
        });
        let mut tasks = JoinSet::new();
        for backend in 0..backends.len() {
            tasks.spawn(watch(backend, Arc::clone(&shared)));
        }
        tasks.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self {
            address,
            shared,
            _tasks: tasks,
        })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it knows and has done so far.
    pub fn balanced(&self) -> Balanced {
        self.shared.known().balanced.clone()
    }

    /// Waits until it has seen that a backend is ready.
    ///
    /// # Errors
    /// If it has not after `limit`.
    pub async fn sees_ready(&self, backend: usize, limit: Duration) -> anyhow::Result<()> {
        wait_for("the balancer to see readiness", limit, async || {
            let balanced = self.balanced();
            match balanced.ready[backend] {
                true => Ok(()),
                false => Err(format!("{balanced:?}")),
            }
        })
        .await
    }
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ready backends, from whose turn it is on.
    fn turn(&self) -> Vec<usize> {
        let mut known = self.known();
        let count = self.backends.len();
        let ready: Vec<usize> = (known.next..known.next + count)
            .map(|number| number % count)
            .filter(|backend| known.balanced.ready[*backend])
            .collect();
        if let Some(first) = ready.first() {
            known.next = first + 1;
        }
        ready
    }
}

/// Keeps what is known of one backend up to date.
async fn watch(backend: usize, shared: Arc<Shared>) {
    let admin = shared.backends[backend].admin;
    loop {
        let ready = matches!(timeout(PROBE_LIMIT, is_ready(admin)).await, Ok(Ok(true)));
        shared.known().balanced.ready[backend] = ready;
        tokio::time::sleep(PROBE_INTERVAL).await;
    }
}

async fn is_ready(admin: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(admin).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream
        .take(ANSWER_BYTES_MAX)
        .read_to_end(&mut answer)
        .await?;
    Ok(answer.starts_with(b"HTTP/1.1 200 "))
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    connections.spawn(connection(client, Arc::clone(&shared)));
                }
                Err(error) => {
                    eprintln!("the balancer cannot accept: {error}");
                    // Out of descriptors, most likely: some may come back.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(mut client: TcpStream, shared: Arc<Shared>) {
    // Neither changes more than the pace; a socket that is gone already shows at the next read.
    let _ = client.set_nodelay(true);
    for backend in shared.turn() {
        let connecting = TcpStream::connect(shared.backends[backend].address);
        let Ok(Ok(mut server)) = timeout(CONNECT_LIMIT, connecting).await else {
            // It has ended since it was looked at. Nothing was sent yet, so another one may have the connection.
            continue;
        };
        shared.known().balanced.connections[backend] += 1;
        let _ = server.set_nodelay(true);
        if copy_bidirectional(&mut client, &mut server).await.is_err() {
            // Both get to see it as what it was.
            let _ = client.set_zero_linger();
            let _ = server.set_zero_linger();
        }
        return;
    }
    shared.known().balanced.refused += 1;
    let _ = client.set_zero_linger();
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// A server that says its number to whoever connects, and is ready as long as it is told to be.
    async fn server(number: u8, ready: Arc<Mutex<bool>>) -> (Backend, JoinSet<()>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let admin = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let backend = Backend {
            address: listener.local_addr().unwrap(),
            admin: admin.local_addr().unwrap(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_u8(number).await.unwrap();
                open.push(stream);
            }
        });
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = admin.accept().await.unwrap();
                let status = match *ready.lock().unwrap() {
                    true => "200 OK",
                    false => "503 Service Unavailable",
                };
                let _ = stream.read(&mut [0; 1024]).await;
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (backend, tasks)
    }

    async fn ask(balancer: &Balancer) -> std::io::Result<(u8, TcpStream)> {
        let mut stream = TcpStream::connect(balancer.address()).await?;
        Ok((stream.read_u8().await?, stream))
    }

    async fn until(balancer: &Balancer, wished: [bool; 2]) {
        wait_for("readiness", LIMIT, async || {
            let ready = balancer.balanced().ready;
            if ready == wished {
                Ok(())
            } else {
                Err(format!("{ready:?}"))
            }
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn new_connections_go_to_who_is_ready_and_others_stay_where_they_are() {
        let ready = [(); 2].map(|()| Arc::new(Mutex::new(true)));
        let (first, _first) = server(0, Arc::clone(&ready[0])).await;
        let (second, _second) = server(1, Arc::clone(&ready[1])).await;
        let balancer = Balancer::start(&[first, second]).await.unwrap();
        until(&balancer, [true, true]).await;
        let mut kept = Vec::new();
        for _ in 0..4 {
            kept.push(ask(&balancer).await.unwrap());
        }
        assert_eq!(balancer.balanced().connections, [2, 2]);

        *ready[0].lock().unwrap() = false;
        until(&balancer, [false, true]).await;
        for _ in 0..4 {
            assert_eq!(ask(&balancer).await.unwrap().0, 1);
        }
        *ready[1].lock().unwrap() = false;
        until(&balancer, [false, false]).await;
        assert!(ask(&balancer).await.is_err());
        assert_eq!(balancer.balanced().refused, 1);
        for (_, mut stream) in kept {
            let more = timeout(Duration::from_millis(20), stream.read_u8()).await;
            assert!(more.is_err(), "a connection was ended");
        }
    }

    #[tokio::test]
    async fn a_backend_that_has_gone_since_the_last_look_costs_no_connection() {
        let ready = [(); 2].map(|()| Arc::new(Mutex::new(true)));
        let (gone, mut its_tasks) = server(0, Arc::clone(&ready[0])).await;
        let (stays, _tasks) = server(1, Arc::clone(&ready[1])).await;
        let balancer = Balancer::start(&[gone, stays]).await.unwrap();
        until(&balancer, [true, true]).await;
        its_tasks.shutdown().await;
        for _ in 0..4 {
            assert_eq!(ask(&balancer).await.unwrap().0, 1);
        }
    }
}
