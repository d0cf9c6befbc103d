//! `outstation supervise -- CMD…`: asks the kernel to kill this process when the one that started
//! it dies, then becomes CMD. The request survives the exec, so nothing of `dev` outlives it.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::getppid;

use crate::args::Supervise;
use crate::message::Failure;

/// Returns only if it fails.
pub fn exec(verb: &Supervise) -> anyhow::Error {
    if let Err(error) = prctl::set_pdeathsig(Signal::SIGKILL) {
        return anyhow::Error::new(error).context("tie this process to its parent");
    }
    // The parent may have died before the request was made: then we have another one by now.
    if getppid().as_raw() != i32::try_from(verb.parent).unwrap_or(-1) {
        let what = format!("process {} has ended already", verb.parent);
        return Failure::new(what, "this verb is for `outstation dev`").into();
    }
    let Some((program, arguments)) = verb.command.split_first() else {
        return Failure::new("no command", "name one after --").into();
    };
    let error = Command::new(program).args(arguments).exec();
    anyhow::Error::new(error).context(format!("start {}", program.display()))
}
