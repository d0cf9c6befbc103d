//! The command `outstation`. Everything is in the library.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let args = match outstation_cli::args::Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            if !error.use_stderr() {
                // `--help` and `--version`.
                let _ = error.print();
                return ExitCode::SUCCESS;
            }
            eprintln!("{}", outstation_cli::message::of_arguments(&error.to_string()));
            // Not clap's 2, which says "something would change" after `plan`.
            return ExitCode::FAILURE;
        }
    };
    match outstation_cli::run(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{}", outstation_cli::message::two_lines(&error));
            ExitCode::FAILURE
        }
    }
}
