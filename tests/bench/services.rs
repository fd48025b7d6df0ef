//! Passline's own binaries, built for release and run as a user would.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::corpus::SECRET;
use crate::process::{Server, free_port};

/// Where the binaries are.
pub(crate) struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    /// Builds what is needed of the gateway and pass-state, for release, without test-only features.
    pub(crate) fn build(gateway: bool, pass_state: bool) -> Result<Self> {
        let needed = [("webhook-gateway", gateway), ("pass-state", pass_state)];
        let packages: Vec<&str> = needed
            .iter()
            .filter(|(_, needed)| *needed)
            .flat_map(|(package, _)| ["-p", *package])
            .collect();
        if !packages.is_empty() {
            let mut cargo = Command::new("cargo");
            cargo
                .args(["build", "--locked", "--release"])
                .args(packages);
            let status = cargo.status().context("run cargo")?;
            ensure!(status.success(), "cargo build failed");
        }
        let own = std::env::current_exe()?;
        let directory = own
            .parent()
            .context("the benchmark lies in no directory")?
            .to_path_buf();
        Ok(Self { directory })
    }

    /// Starts a gateway with one PassKit source; `pass_state` is where it forwards to.
    pub(crate) fn gateway(
        &self,
        data: &Path,
        pass_state: SocketAddr,
    ) -> Result<(Server, SocketAddr)> {
        self.gateway_with(data, pass_state, "")
    }

    /// The same with further tables in its configuration.
    pub(crate) fn gateway_with(
        &self,
        data: &Path,
        pass_state: SocketAddr,
        tables: &str,
    ) -> Result<(Server, SocketAddr)> {
        self.gateway_to(data, &format!("http://{pass_state}"), tables)
    }

    /// The same with an endpoint that may have TLS.
    pub(crate) fn gateway_to(
        &self,
        data: &Path,
        endpoint: &str,
        tables: &str,
    ) -> Result<(Server, SocketAddr)> {
        let (server, address, _) = self.gateway_at(data, endpoint, tables)?;
        Ok((server, address))
    }

    /// The same, with its admin listener's address. The tables begin with more keys of `[telemetry]`.
    pub(crate) fn gateway_with_admin(
        &self,
        data: &Path,
        pass_state: SocketAddr,
        tables: &str,
    ) -> Result<(Server, SocketAddr, SocketAddr)> {
        self.gateway_at(data, &format!("http://{pass_state}"), tables)
    }

    fn gateway_at(
        &self,
        data: &Path,
        endpoint: &str,
        tables: &str,
    ) -> Result<(Server, SocketAddr, SocketAddr)> {
        let (port, admin) = (free_port()?, free_port()?);
        let config = data.join("gateway.toml");
        std::fs::write(
            &config,
            format!(
                r#"[http]
listen = "127.0.0.1:{port}"
[admin]
listen = "127.0.0.1:{admin}"
[pass_state]
endpoint = "{endpoint}"
[telemetry]
log_filter = "warn"
{tables}
[[sources]]
name = "bench"
vendor = "passkit"
auth = {{ scheme = "hmac", secrets = [{{ id = "k", value = "{SECRET}" }}] }}
"#
            ),
        )?;
        let mut command = Command::new(self.directory.join("webhook-gateway"));
        command
            .arg("serve")
            .arg("--config")
            .arg(&config)
            .arg("--data-dir")
            .arg(data);
        let server = Server::start(command, &data.join("gateway.log"))?;
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Ok((server, address(port), address(admin)))
    }

    /// Starts pass-state on SQLite.
    pub(crate) fn pass_state(&self, data: &Path) -> Result<(Server, SocketAddr)> {
        self.pass_state_with(data, "")
    }

    /// The same with further tables in its configuration.
    pub(crate) fn pass_state_with(
        &self,
        data: &Path,
        tables: &str,
    ) -> Result<(Server, SocketAddr)> {
        let (port, admin) = (free_port()?, free_port()?);
        let config = data.join("pass-state.toml");
        std::fs::write(
            &config,
            format!(
                r#"[grpc]
listen = "127.0.0.1:{port}"
[admin]
listen = "127.0.0.1:{admin}"
[telemetry]
log_filter = "warn"
{tables}
"#
            ),
        )?;
        let mut command = Command::new(self.directory.join("pass-state"));
        command
            .arg("serve")
            .arg("--config")
            .arg(&config)
            .arg("--data-dir")
            .arg(data);
        let server = Server::start(command, &data.join("pass-state.log"))?;
        Ok((server, SocketAddr::from(([127, 0, 0, 1], port))))
    }

    /// Starts a reference server.
    pub(crate) fn reference(kind: &str, data: &Path) -> Result<(Server, SocketAddr)> {
        let port = free_port()?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("serve")
            .arg(kind)
            .arg(port.to_string())
            .arg(data);
        let server = Server::start(command, &data.join("reference.log"))?;
        Ok((server, SocketAddr::from(([127, 0, 0, 1], port))))
    }
}
