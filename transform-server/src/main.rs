//! `outstation-transform-server`: see `--help`.

use std::error::Error;
use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Parser;
use outstation_transform_server::{LogWriter, Options, Server, StartError};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let options = Options::parse();
    close_inherited();
    let (log, runtime) = match prepare() {
        Ok(prepared) => prepared,
        Err(error) => {
            eprintln!("error: cannot start threads: {error}");
            eprintln!("hint: the machine's limit of processes may be reached (ulimit -u)");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(run(options));
    log.flush();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            eprintln!("error: {error}{cause}\nhint: {}", error.hint());
            ExitCode::FAILURE
        }
    }
}

fn prepare() -> io::Result<(LogWriter, Runtime)> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = LogWriter::start(io::stderr())?;
    tracing_subscriber::fmt()
        .with_writer(log.clone())
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal())
        .with_env_filter(filter)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    Ok((log, runtime))
}

async fn run(options: Options) -> Result<(), StartError> {
    let terminate = SignalKind::terminate();
    let mut signals = [terminate, SignalKind::interrupt()]
        .map(|kind| signal(kind).expect("signals can be handled"));
    let (group, instance, unix) =
        (options.group.clone(), options.instance.clone(), options.unix.clone());
    let server = Server::bind(options).await?;
    let address = server.local_addr().map(|address| address.to_string());
    info!(address, unix = ?unix, group, instance, "listening");
    let shutdown = async move {
        let [terminate, interrupt] = &mut signals;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    server.run(shutdown).await;
    Ok(())
}

/// Whatever our parent left open beyond the standard three would be inherited by user code as well.
/// Runs before anything of ours is open.
fn close_inherited() {
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let names: Vec<_> = open.flatten().map(|entry| entry.file_name()).collect();
    for fd in
        names.iter().filter_map(|name| name.to_str()?.parse::<i32>().ok()).filter(|fd| *fd > 2)
    {
        // Fails for the descriptor that read the list, which is closed already.
        let _ = nix::unistd::close(fd);
    }
}
