//! The command `outstation`. Everything is in the library.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let args = outstation_cli::args::Args::parse();
    match outstation_cli::run(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{}", outstation_cli::message::two_lines(&error));
            ExitCode::FAILURE
        }
    }
}
