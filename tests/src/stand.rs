//! The pair that most tests are about: a fleet of one gateway and one pass-state, with the embedded spool and
//! SQLite, and shorter names for its two members.

use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;

use crate::fleet::{Fleet, Layout, spool_dir};
pub use crate::fleet::{Options, Programs};
use crate::service::{Service, Strace};

/// One gateway and one pass-state.
#[derive(Debug)]
pub struct Stand(Fleet);

impl Deref for Stand {
    type Target = Fleet;

    fn deref(&self) -> &Fleet {
        &self.0
    }
}

impl DerefMut for Stand {
    fn deref_mut(&mut self) -> &mut Fleet {
        &mut self.0
    }
}

impl Stand {
    /// Writes the configuration and starts nothing.
    ///
    /// # Errors
    /// If files can't be written or no ports are free.
    pub fn new(programs: &Programs, options: &Options) -> anyhow::Result<Self> {
        let layout = Layout {
            options: options.clone(),
            ..Layout::pair()
        };
        Ok(Self(Fleet::new(programs, &layout)?))
    }

    /// Writes the configuration, starts both services and waits until they are ready.
    ///
    /// # Errors
    /// If any of that fails.
    pub async fn started(programs: &Programs, options: &Options) -> anyhow::Result<Self> {
        let mut stand = Self::new(programs, options)?;
        stand.start_state().await?;
        stand.start_gateway().await?;
        Ok(stand)
    }

    /// Starts the gateway and waits until it is ready.
    ///
    /// # Errors
    /// If it does not get ready.
    pub async fn start_gateway(&mut self) -> anyhow::Result<()> {
        self.gateways[0].start().await
    }

    /// Starts pass-state and waits until it is ready.
    ///
    /// # Errors
    /// If it does not get ready.
    pub async fn start_state(&mut self) -> anyhow::Result<()> {
        self.states[0].start().await
    }

    /// Starts the gateway without waiting for it.
    ///
    /// # Errors
    /// If it can't be started.
    pub async fn launch_gateway(&mut self) -> anyhow::Result<&mut Service> {
        self.gateways[0].launch().await
    }

    /// Starts pass-state without waiting for it.
    ///
    /// # Errors
    /// If it can't be started.
    pub async fn launch_state(&mut self) -> anyhow::Result<&mut Service> {
        self.states[0].launch().await
    }

    /// Takes the running gateway, to end or kill it.
    ///
    /// # Panics
    /// If it does not run.
    pub fn take_gateway(&mut self) -> Service {
        self.gateways[0].take()
    }

    /// Takes the running pass-state, to end or kill it.
    ///
    /// # Panics
    /// If it does not run.
    pub fn take_state(&mut self) -> Service {
        self.states[0].take()
    }

    /// The running gateway.
    ///
    /// # Panics
    /// If it does not run.
    pub fn gateway(&self) -> &Service {
        self.gateways[0].service()
    }

    /// The running pass-state.
    ///
    /// # Panics
    /// If it does not run.
    pub fn state(&self) -> &Service {
        self.states[0].service()
    }

    /// How the gateway is started from here on.
    pub fn set_gateway_strace(&mut self, strace: Option<Strace>) {
        self.gateways[0].set_strace(strace);
    }

    /// Changes the gateway's configuration file, for its next start.
    ///
    /// # Errors
    /// If the file can't be read or written, or has nothing to be changed.
    pub fn edit_gateway_config(&self, from: &str, to: &str) -> anyhow::Result<()> {
        self.gateways[0].edit_config(from, to)
    }

    /// Where callbacks are sent.
    pub fn http(&self) -> SocketAddr {
        self.gateways[0].address()
    }

    /// Where pass-state answers gRPC.
    pub fn grpc(&self) -> SocketAddr {
        self.states[0].address()
    }

    /// The gateway's spool directory.
    pub fn spool_dir(&self) -> PathBuf {
        spool_dir(&self.gateways[0])
    }

    /// The directory of pass-state's database.
    pub fn database_dir(&self) -> PathBuf {
        self.states[0].data_dir().join("pass-state")
    }

    /// As [`Fleet::finish`].
    ///
    /// # Errors
    /// As there.
    pub async fn finish(self) -> anyhow::Result<()> {
        self.0.finish().await
    }

    /// As [`Fleet::finish_with_errors`].
    ///
    /// # Errors
    /// As there.
    pub async fn finish_with_errors(self, announced: &[&str]) -> anyhow::Result<()> {
        self.0.finish_with_errors(announced).await
    }
}
