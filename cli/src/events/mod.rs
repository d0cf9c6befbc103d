//! `outstation events`: the broker's event log, line by line. Survives the broker: it goes on where
//! it was when the broker is back.

mod line;
mod reader;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Status};

use self::reader::Reader;
use crate::admin::{Admin, code_text};
use crate::args;
use crate::clock;
use crate::context::Context;
use crate::message::Failure;

/// Between two attempts to reach the broker: it restarts in about a second, and one that stays away
/// is not asked more often than every few.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Who does not follow wants an answer: a broker that is away for longer is an error.
const AWAY_MAX: Duration = Duration::from_secs(30);

/// How a stream ended.
enum Ended {
    /// Everything that was asked for is printed.
    Whole,
    /// Nobody reads on (`| head`).
    Unread,
    /// Worth trying again.
    Broken(String),
}

pub async fn run(context: &Context, verb: &args::Events) -> anyhow::Result<ExitCode> {
    let since = verb.since.map_or(0, |age| clock::now_unix_secs().saturating_sub(age.0));
    let mut reader = Reader::new(verb.group.clone(), verb.after, since, verb.follow);
    // Whoever starts it learns at once that the broker cannot be reached; later it is waited for.
    let mut admin = Admin::connect(context).await?;
    let mut outage = None;
    loop {
        match stream(&admin, &mut reader, verb.json, &mut outage).await? {
            Ended::Unread => return Ok(ExitCode::SUCCESS),
            Ended::Whole => break,
            Ended::Broken(why) => {
                let outage = outage.get_or_insert_with(Outage::new);
                admin = reconnect(context, verb.follow, outage, &why).await?;
            }
        }
    }
    // Nothing to show may be a name that is not right.
    if let (0, Some(group)) = (reader.shown(), &verb.group) {
        admin.group(group).await?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn stream(
    admin: &Admin,
    reader: &mut Reader,
    as_json: bool,
    outage: &mut Option<Outage>,
) -> anyhow::Result<Ended> {
    let mut events = match admin.events(reader.request()).await {
        Ok(events) => events,
        Err(status) => return broken(admin, &status),
    };
    loop {
        match events.message().await {
            Ok(Some(response)) => {
                if outage.take().is_some_and(|outage| outage.told) {
                    eprintln!("-- the broker is back");
                }
                let Some(item) = reader.handle(response) else { continue };
                if !print(&line::line(&item, as_json))? {
                    return Ok(Ended::Unread);
                }
            }
            Ok(None) if reader.is_done() => return Ok(Ended::Whole),
            Ok(None) => return Ok(Ended::Broken("the stream ended".into())),
            Err(status) => return broken(admin, &status),
        }
    }
}

/// What another attempt may mend, and what not.
fn broken(admin: &Admin, status: &Status) -> anyhow::Result<Ended> {
    match status.code() {
        Code::Unauthenticated
        | Code::PermissionDenied
        | Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::NotFound
        | Code::Unimplemented
        | Code::ResourceExhausted => Err(admin.refused("read the events", status)),
        code => Ok(Ended::Broken(format!("{}: {}", code_text(code), status.message()))),
    }
}

/// From the end of a stream to the first word of the next.
struct Outage {
    deadline: Instant,
    pause: Duration,
    told: bool,
}

impl Outage {
    fn new() -> Outage {
        Outage { deadline: Instant::now() + AWAY_MAX, pause: RETRY_MIN, told: false }
    }
}

/// Until the broker takes a connection. Says once that it is away.
async fn reconnect(
    context: &Context,
    follow: bool,
    outage: &mut Outage,
    why: &str,
) -> anyhow::Result<Admin> {
    loop {
        tokio::time::sleep(outage.pause).await;
        outage.pause = (outage.pause * 2).min(RETRY_MAX);
        // Trust and token are read again: a broker that was made anew has others.
        let connected = Admin::connect(context).await;
        let late = Instant::now() >= outage.deadline;
        match connected {
            Err(error) if late && !follow => return Err(error),
            Ok(_) if late && !follow => {
                let what = format!("the broker breaks off before it has told everything: {why}");
                return Err(Failure::new(what, "look at the broker's log").into());
            }
            Ok(admin) => return Ok(admin),
            Err(_) if !outage.told => {
                eprintln!("-- the broker is away ({why}); waiting for it");
                outage.told = true;
            }
            Err(_) => {}
        }
    }
}

/// A line on standard output, at once. False: nobody reads it.
fn print(line: &str) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(anyhow::Error::from(error).context("write to standard output")),
    }
}
