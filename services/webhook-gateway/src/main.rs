//! The webhook gateway's process: reads its configuration, serves until a signal, and says by its exit code
//! how it went (0 in order, 1 failed, 64 started wrongly).

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use service_kit::clock::SystemClock;
use service_kit::config::{Faults, Sources, process_env};
use service_kit::shutdown::{Shutdown, Signals};
use service_kit::{EXIT_USAGE, admin, telemetry};
use webhook_gateway::config::{Admin, ENV_PREFIX};
use webhook_gateway::{Config, Dependencies, Gateway, ImportError, spool_import};

/// Takes wallet-pass vendors' webhooks, stores them durably and forwards them to pass-state.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// The configuration file; without one, defaults and environment.
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    /// Where the spool is kept unless `spool.dir` is set.
    #[arg(long, global = true, default_value = "passline-data")]
    data_dir: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Serves until SIGTERM or SIGINT; a second signal cuts what is left.
    Serve,
    /// Checks the configuration, tells every fault, and exits.
    CheckConfig,
    /// Asks a running gateway whether it is ready.
    Healthcheck,
    /// Changes which log lines a running gateway writes, until it ends. On its machine only.
    LogFilter {
        /// Levels by target, as `info,hyper=warn`.
        filter: String,
    },
    /// Works on the spool while no gateway does.
    #[command(subcommand)]
    Spool(SpoolCommand),
}

#[derive(Subcommand)]
enum SpoolCommand {
    /// Takes everything over that the embedded spool in another directory holds, and exits. For a spool that was put
    /// back to an earlier moment and moved aside, one found on the disk of a machine that is gone, or the way to
    /// JetStream. Repeating it is harmless: nothing is recorded twice.
    Import {
        /// The other spool's directory, in use by nobody.
        dir: PathBuf,
    },
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
    let Err(error) = run(arguments.command, from, arguments.data_dir).await else {
        return ExitCode::SUCCESS;
    };
    if let Some(faults) = error.downcast_ref::<Faults>() {
        eprintln!("{faults}");
        return ExitCode::from(EXIT_USAGE);
    }
    eprintln!("webhook-gateway: {error:#}");
    if error.downcast_ref().is_some_and(ImportError::is_usage) {
        ExitCode::from(EXIT_USAGE)
    } else {
        ExitCode::FAILURE
    }
}

async fn run(command: Command, from: Sources, data_dir: PathBuf) -> anyhow::Result<()> {
    match command {
        Command::Serve => serve(Config::load(&from)?, from, data_dir).await?,
        Command::CheckConfig => drop(Config::load(&from)?),
        Command::Healthcheck => {
            let admin = Admin::load(&from)?;
            admin::healthcheck(admin.listen, admin.tls.as_ref()).await?;
        }
        Command::LogFilter { filter } => {
            let admin = Admin::load(&from)?;
            admin::log_filter(admin.listen, admin.tls.as_ref(), &filter).await?;
        }
        Command::Spool(SpoolCommand::Import { dir }) => {
            import(&Config::load(&from)?, from.env, data_dir, &dir).await?;
        }
    }
    Ok(())
}

async fn serve(config: Config, from: Sources, data_dir: PathBuf) -> anyhow::Result<()> {
    let telemetry = telemetry::init(&config.telemetry);
    let shutdown = Shutdown::new();
    let signals = Signals::new().context("signal handlers can't be installed")?;
    tokio::spawn(shutdown.clone().follow(signals, config.drain_delay.get()));
    let dependencies = Dependencies {
        clock: Arc::new(SystemClock),
        env: from.env.clone(),
        data_dir,
        config_from: Some(from),
    };
    let gateway = Gateway::build(config, dependencies).await?;
    let result = gateway.run(shutdown).await;
    telemetry.shutdown().await;
    Ok(result?)
}

async fn import(
    config: &Config,
    env: Vec<(String, String)>,
    data_dir: PathBuf,
    dir: &Path,
) -> anyhow::Result<()> {
    let dependencies = Dependencies {
        clock: Arc::new(SystemClock),
        env,
        data_dir,
        config_from: None,
    };
    let imported = Box::pin(spool_import(config, dependencies, dir)).await?;
    println!("{imported}");
    Ok(())
}
