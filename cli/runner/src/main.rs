//! `cargo dev` and `cargo verify`: what a fresh machine needs, made once, then the real commands.
//! Standard library and anyhow only, so that it is compiled in a second.

mod python;
mod verify;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Context as _;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let verb = args.next().unwrap_or_default();
    // `cargo dev -- --once` arrives as `dev -- --once`.
    let mut rest: Vec<String> = args.collect();
    if rest.first().is_some_and(|first| first == "--") {
        rest.remove(0);
    }
    let outcome = Workspace::find().and_then(|workspace| match verb.as_str() {
        "dev" => workspace.dev(&rest),
        "verify" => verify::run(&workspace),
        // For scripts and editors: makes the environment if need be, prints its interpreter.
        "python" => {
            python::environment(&workspace.root).map(|python| println!("{}", python.display()))
        }
        _ => Err(anyhow::anyhow!("{verb:?} is neither dev nor verify")
            .context("hint: cargo dev | cargo verify")),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut causes: Vec<String> = error.chain().map(ToString::to_string).collect();
            let hint = match causes.iter().position(|cause| cause.starts_with("hint: ")) {
                Some(index) => causes.remove(index),
                None => "hint: the output above says more".to_owned(),
            };
            eprintln!("error: {}\n{hint}", causes.join(": "));
            ExitCode::FAILURE
        }
    }
}

/// Where the sources are, and where cargo has put this program: beside all others.
pub struct Workspace {
    pub root: PathBuf,
    pub bin_dir: PathBuf,
}

impl Workspace {
    fn find() -> anyhow::Result<Workspace> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = manifest.ancestors().nth(2).context("find the workspace")?.to_owned();
        let program = std::env::current_exe().context("find this program")?;
        let bin_dir = program.parent().context("find this program's folder")?.to_owned();
        Ok(Workspace { root, bin_dir })
    }

    pub fn cargo(&self) -> Command {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.current_dir(&self.root);
        command
    }

    pub fn build(&self) -> anyhow::Result<()> {
        run(self.cargo().args(["build", "--workspace", "--bins", "--lib"]))?;
        python::place_native_module(&self.root, &self.bin_dir)
    }

    fn dev(&self, args: &[String]) -> anyhow::Result<()> {
        let python = python::environment(&self.root)?;
        eprintln!("building (the first time takes some minutes) …");
        self.build()?;
        let error = self.outstation_dev(&python).args(args).exec();
        Err(error).context("start outstation")
    }

    pub fn outstation_dev(&self, python: &Path) -> Command {
        let mut command = Command::new(self.bin_dir.join("outstation"));
        command.arg("dev").env("OUTSTATION_PYTHON", python).current_dir(&self.root);
        command
    }
}

/// Runs to the end; the command's own output says what went wrong.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let shown = shown(command);
    let status = command.status().with_context(|| format!("start {shown}"))?;
    anyhow::ensure!(status.success(), "{shown} ended with {status}");
    Ok(())
}

fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program()).to_string_lossy();
    let args = command.get_args().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ");
    format!("{name} {args}")
}
