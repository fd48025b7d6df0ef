//! The binary: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser as _;
use passline::args::Cli;
use passline::{Out, run};
use service_kit::EXIT_USAGE;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, and are no errors.
            let is_error = error.use_stderr();
            let _ = error.print();
            return ExitCode::from(if is_error { EXIT_USAGE } else { 0 });
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            anstream::eprintln!("passline: the runtime does not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut out = Out::standard(cli.json);
    match runtime.block_on(run(cli, &mut out)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.is_silent() {
                anstream::eprintln!("passline: {failure}");
            }
            ExitCode::from(failure.exit_code())
        }
    }
}
