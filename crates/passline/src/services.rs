//! Both services in one process, talking to each other over the real loopback
//! gRPC.
//!
//! Who waits for whom: on the way up pass-state is bound first, because the
//! gateway is told its port. On the way down the gateway ends first, so that
//! what it accepted still reaches pass-state; then pass-state. If one ends by
//! itself the other is stopped too, and that is a failure.

use std::error::Error;
use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pass_state::PassState;
use service_kit::clock::SystemClock;
use service_kit::shutdown::{Phase, Shutdown, Signals};
use tokio::task::{JoinError, JoinHandle};
use webhook_gateway::Gateway;

use crate::Failure;
use crate::config::Both;

/// Both services, running.
pub(crate) struct Services {
    pub(crate) addresses: Addresses,
    control: Control,
    running: JoinHandle<Result<(), Failure>>,
    /// Held as long as anything writes to it.
    _directory: DataDir,
}

/// Where the services listen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    /// Callbacks over HTTP.
    pub(crate) callbacks: Address,
    /// Health and version of the gateway.
    pub(crate) gateway_admin: Address,
    /// pass-state over gRPC.
    pub(crate) grpc: Address,
    /// Health and version of pass-state.
    pub(crate) pass_state_admin: Address,
}

/// Where one listener is reached; shown as a URL.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub(crate) at: SocketAddr,
    pub(crate) tls: bool,
}

impl Address {
    fn new(bound: SocketAddr, tls: bool) -> Self {
        let at = reachable(bound);
        Self { at, tls }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.at)
    }
}

/// One handle per service, because they end one after the other.
#[derive(Clone, Default)]
struct Control {
    gateway: Shutdown,
    pass_state: Shutdown,
}

impl Services {
    /// Binds everything and starts it.
    pub(crate) async fn start(
        both: Both,
        directory: DataDir,
        env: Vec<(String, String)>,
    ) -> Result<Self, Failure> {
        let Both {
            mut gateway,
            gateway_from,
            pass_state,
        } = both;
        let clock = Arc::new(SystemClock);
        let grpc_tls = pass_state.grpc.tls.is_some();
        let pass_state_admin_tls = pass_state.admin.tls.is_some();
        let callbacks_tls = gateway.http.tls.is_some();
        let gateway_admin_tls = gateway.admin.tls.is_some();
        // Boxed, since what they hold until everything is open is large.
        let pass_state = Box::pin(PassState::build(
            pass_state,
            pass_state::Dependencies {
                store: None,
                clock: Arc::clone(&clock) as _,
                data_dir: directory.path().to_owned(),
            },
        ))
        .await
        .map_err(|error| Failure::Failed(format!("pass_state.{}", chain(&error))))?;
        let grpc = Address::new(pass_state.grpc_addr(), grpc_tls);
        gateway.pass_state.endpoint = grpc.to_string().into();
        let gateway = Box::pin(Gateway::build(
            gateway,
            webhook_gateway::Dependencies {
                clock,
                env,
                data_dir: directory.path().to_owned(),
                config_from: Some(gateway_from),
            },
        ))
        .await
        .map_err(|error| Failure::Failed(format!("gateway.{}", chain(&error))))?;
        let addresses = Addresses {
            callbacks: Address::new(gateway.http_addr(), callbacks_tls),
            gateway_admin: Address::new(gateway.admin_addr(), gateway_admin_tls),
            grpc,
            pass_state_admin: Address::new(pass_state.admin_addr(), pass_state_admin_tls),
        };
        let control = Control::default();
        let running = tokio::spawn(supervise(
            tokio::spawn(gateway.run(control.gateway.clone())),
            tokio::spawn(pass_state.run(control.pass_state.clone())),
            control.clone(),
        ));
        Ok(Self {
            addresses,
            control,
            running,
            _directory: directory,
        })
    }

    /// Waits until both have ended by themselves, which is a failure. Cancel safe.
    pub(crate) async fn ended(&mut self) -> Failure {
        match (&mut self.running).await {
            Ok(Err(failure)) => failure,
            Ok(Ok(())) => Failure::Failed("the services ended without being told to".to_owned()),
            Err(error) => Failure::Failed(format!("supervision of the services: {error}")),
        }
    }

    /// Stops both and waits until they have ended; a signal meanwhile skips the
    /// waiting for connections. Nobody balances load here, so there is no delay
    /// between not ready and stopping.
    pub(crate) async fn stop(mut self, signals: &mut Signals) -> Result<(), Failure> {
        self.control.gateway.advance(Phase::Stopping);
        let ended = tokio::select! {
            ended = &mut self.running => ended,
            () = signals.recv() => {
                self.control.gateway.advance(Phase::Aborting);
                self.control.pass_state.advance(Phase::Aborting);
                (&mut self.running).await
            }
        };
        ended.map_err(|error| Failure::Failed(format!("supervision of the services: {error}")))?
    }
}

async fn supervise<G, S>(
    mut gateway: JoinHandle<Result<(), G>>,
    mut pass_state: JoinHandle<Result<(), S>>,
    control: Control,
) -> Result<(), Failure>
where
    G: Error + Send + 'static,
    S: Error + Send + 'static,
{
    let outcomes = tokio::select! {
        ended = &mut gateway => {
            let first = outcome("webhook-gateway", ended, control.gateway.is_stopping());
            control.pass_state.advance(Phase::Stopping);
            let asked = control.pass_state.is_stopping();
            [first, outcome("pass-state", pass_state.await, asked)]
        }
        ended = &mut pass_state => {
            let first = outcome("pass-state", ended, control.pass_state.is_stopping());
            control.gateway.advance(Phase::Stopping);
            let asked = control.gateway.is_stopping();
            [first, outcome("webhook-gateway", gateway.await, asked)]
        }
    };
    let faults: Vec<String> = outcomes.into_iter().flatten().collect();
    if faults.is_empty() {
        Ok(())
    } else {
        Err(Failure::Failed(faults.join("; ")))
    }
}

/// What was wrong with the end of a service, if anything.
fn outcome<E: Error>(
    name: &str,
    ended: Result<Result<(), E>, JoinError>,
    asked: bool,
) -> Option<String> {
    match ended {
        Ok(Ok(())) if asked => None,
        Ok(Ok(())) => Some(format!("{name} ended by itself")),
        Ok(Err(error)) => Some(format!("{name}: {}", chain(&error))),
        Err(error) => Some(format!("{name}: {error}")),
    }
}

/// An error with its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

/// An address to connect to, also where the service listens on all of them.
fn reachable(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bound.port())
}

/// A data directory that belongs to this process until it is dropped. The
/// kernel gives it back however the process ends.
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory, for its owner only, if need be, and takes it.
    pub(crate) fn take(path: &Path) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| {
            Failure::Failed(format!("data directory {}: {error}", path.display()))
        };
        make_dir(path).map_err(failed)?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join("passline.lock"))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(Failure::Failed(format!(
                "data directory {} is in use by another passline: stop that one, or choose another with --data-dir",
                path.display()
            ))),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Takes over SIGINT and SIGTERM; from here on they no longer kill.
pub(crate) fn signals() -> Result<Signals, Failure> {
    Signals::new()
        .map_err(|error| Failure::Failed(format!("signal handlers can't be installed: {error}")))
}

/// Makes a directory and its parents, for their owner only.
pub(crate) fn make_dir(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("broken")]
    struct Broken;

    fn service(shutdown: Shutdown, result: Result<(), Broken>) -> JoinHandle<Result<(), Broken>> {
        tokio::spawn(async move {
            shutdown.stopping().await;
            result
        })
    }

    #[tokio::test]
    async fn the_gateway_ends_before_pass_state_is_told_to() {
        let control = Control::default();
        let gateway = service(control.gateway.clone(), Ok(()));
        let pass_state = service(control.pass_state.clone(), Ok(()));
        let running = tokio::spawn(supervise(gateway, pass_state, control.clone()));
        assert!(!control.pass_state.is_stopping());
        control.gateway.advance(Phase::Stopping);
        running.await.unwrap().unwrap();
        assert!(control.pass_state.is_stopping());
    }

    #[tokio::test]
    async fn when_one_fails_the_other_is_stopped_and_the_failure_is_told() {
        let control = Control::default();
        let gateway = service(control.gateway.clone(), Ok(()));
        let failing = tokio::spawn(async { Err(Broken) });
        let failure = supervise(gateway, failing, control.clone())
            .await
            .unwrap_err();
        assert_eq!(failure.to_string(), "pass-state: broken");
        assert!(control.gateway.is_stopping());

        let control = Control::default();
        let early = tokio::spawn(async { Ok::<(), Broken>(()) });
        let pass_state = service(control.pass_state.clone(), Err(Broken));
        let failure = supervise(early, pass_state, control).await.unwrap_err();
        assert_eq!(
            failure.to_string(),
            "webhook-gateway ended by itself; pass-state: broken"
        );
    }

    #[test]
    fn a_data_directory_is_used_by_one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("a/b");
        let held = DataDir::take(&inside).unwrap();
        let failure = DataDir::take(&inside).err().unwrap().to_string();
        assert!(failure.contains("in use by another passline"), "{failure}");
        drop(held);
        DataDir::take(&inside).unwrap();
    }

    #[test]
    fn an_address_of_all_interfaces_is_reached_by_loopback() {
        assert_eq!(
            reachable("0.0.0.0:1".parse().unwrap()).to_string(),
            "127.0.0.1:1"
        );
        assert_eq!(reachable("[::]:1".parse().unwrap()).to_string(), "[::1]:1");
        assert_eq!(
            reachable("127.0.0.2:1".parse().unwrap()).to_string(),
            "127.0.0.2:1"
        );
    }
}
