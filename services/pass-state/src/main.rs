//! pass-state's process: reads its configuration, serves until a signal, and says by its exit code how it
//! went (0 in order, 1 failed, 64 started wrongly).

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use pass_state::config::{AdminConfig, ENV_PREFIX};
use pass_state::{Config, Dependencies, MaintenanceError, PassState};
use service_kit::clock::SystemClock;
use service_kit::config::{self, Faults, Sources, process_env};
use service_kit::shutdown::{Shutdown, Signals};
use service_kit::{EXIT_USAGE, admin, telemetry};

/// Keeps the log of wallet-pass events and serves it over gRPC.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// The configuration file; without one, defaults and environment.
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    /// Where the database is kept unless `store.path` is set.
    #[arg(long, global = true, default_value = "passline-data")]
    data_dir: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Serves until SIGTERM or SIGINT; a second signal cuts what is left.
    Serve,
    /// Makes a new token, and prints it once, with the line for the principals file.
    Token,
    /// Checks the configuration, tells every fault, and exits.
    CheckConfig,
    /// Asks a running pass-state whether it is ready.
    Healthcheck,
    /// Changes which log lines a running pass-state writes, until it ends. On its machine only.
    LogFilter {
        /// Levels by target, as `info,hyper=warn`.
        filter: String,
    },
    /// Brings the database's schema up to date, and exits.
    Migrate,
    /// Changes the log's epoch.
    #[command(subcommand)]
    Epoch(Epoch),
    /// Copies an SQLite database into a new file, also while pass-state runs on it, and exits.
    Backup {
        /// The new file.
        file: PathBuf,
    },
}

#[derive(Subcommand)]
enum Epoch {
    /// Gives the log a new epoch, prints it and the log's end, and exits. For after a restore: every cursor
    /// that clients hold is refused from then on (CURSOR_EPOCH_MISMATCH), also those that are places in the
    /// log as it is now, so each client starts anew from the beginning or from a time.
    Rotate,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(EXIT_USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let from = Sources {
        file: arguments.config,
        env_prefix: ENV_PREFIX,
        env: process_env(),
        section: None,
    };
    let Err(error) = run(arguments.command, &from, arguments.data_dir).await else {
        return ExitCode::SUCCESS;
    };
    if let Some(faults) = error.downcast_ref::<Faults>() {
        eprintln!("{faults}");
        return ExitCode::from(EXIT_USAGE);
    }
    eprintln!("pass-state: {error:#}");
    match error.downcast_ref() {
        Some(MaintenanceError::NotSqlite | MaintenanceError::Missing { .. }) => {
            ExitCode::from(EXIT_USAGE)
        }
        Some(MaintenanceError::Store { .. }) | None => ExitCode::FAILURE,
    }
}

async fn run(command: Command, from: &Sources, data_dir: PathBuf) -> anyhow::Result<()> {
    let config = || config::load::<Config>(from);
    match command {
        // Boxed, since what it holds until everything is open is large.
        Command::Serve => Box::pin(serve(config()?, from, data_dir)).await?,
        Command::Token => token()?,
        Command::CheckConfig => drop(config()?),
        Command::Healthcheck => {
            let admin = AdminConfig::load(from)?;
            admin::healthcheck(admin.listen, admin.tls.as_ref()).await?;
        }
        Command::LogFilter { filter } => {
            let admin = AdminConfig::load(from)?;
            admin::log_filter(admin.listen, admin.tls.as_ref(), &filter).await?;
        }
        Command::Migrate => PassState::migrate(&config()?, &data_dir).await?,
        Command::Epoch(Epoch::Rotate) => epoch_rotate(&config()?, &data_dir).await?,
        Command::Backup { file } => PassState::backup(&config()?, &data_dir, &file).await?,
    }
    Ok(())
}

fn token() -> anyhow::Result<()> {
    let (token, hash) = pass_state::new_token().context("no random bytes")?;
    println!("{token}");
    println!("token_sha256 = [\"{hash}\"]");
    eprintln!(
        "the first line is the token, for the client: it is not shown again; the second goes into the principals file"
    );
    Ok(())
}

async fn epoch_rotate(config: &Config, data_dir: &Path) -> anyhow::Result<()> {
    let head = PassState::epoch_rotate(config, data_dir).await?;
    println!("epoch {:016x}", head.epoch);
    println!("head position {}", head.position.0);
    println!("head cursor {}", head.cursor());
    eprintln!("every cursor from before is refused from now on (CURSOR_EPOCH_MISMATCH)");
    Ok(())
}

async fn serve(config: Config, from: &Sources, data_dir: PathBuf) -> anyhow::Result<()> {
    let telemetry = telemetry::init(&config.telemetry);
    let shutdown = Shutdown::new();
    let signals = Signals::new().context("signal handlers can't be installed")?;
    tokio::spawn(shutdown.clone().follow(signals, config.drain_delay.get()));
    let dependencies = Dependencies {
        store: None,
        clock: Arc::new(SystemClock),
        data_dir,
    };
    let service = PassState::build(config, dependencies).await?;
    let result = service.watching(from).run(shutdown).await;
    telemetry.shutdown().await;
    Ok(result?)
}
