//! Declarations are anybody's Python. These look for what the person who applies them has.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use outstation_cli::key;

/// Writes down everything that a key or a credential could be in: its environment, what it was
/// given open, the files of its home, and its parent's environment and memory map.
const NOSY: &str = r#"
import os, pathlib

def read(path):
    try:
        return pathlib.Path(path).read_bytes().decode(errors="replace")
    except OSError as error:
        return "cannot: %s" % error.strerror

found = dict(os.environ)
home = pathlib.Path(os.path.expanduser("~"))
for place in (".aws/credentials", ".ssh/id_ed25519", ".config/outstation/signing-key.pem"):
    found[place] = read(home / place)
for descriptor in range(3, 64):
    try:
        found["open %d" % descriptor] = os.readlink("/proc/self/fd/%d" % descriptor)
    except OSError:
        pass
if os.getuid() != 0:  # root may look into everything
    found["parent"] = read("/proc/%d/environ" % os.getppid())
pathlib.Path(__file__).with_name("found.txt").write_text(
    "\n".join("%s = %s" % pair for pair in sorted(found.items()))
)
raise SystemExit("looked")
"#;

#[test]
fn declarations_find_no_key_no_agent_and_no_credential() {
    let Some(python) = std::env::var_os("OUTSTATION_TEST_PYTHON").map(PathBuf::from) else {
        eprintln!("left out: OUTSTATION_TEST_PYTHON is not set (cargo verify sets it)");
        return;
    };
    let dir = tempfile::tempdir().expect("a folder");
    let home = dir.path().join("home");
    let usual = home.join(".config/outstation/signing-key.pem");
    let public = key::create(&usual).expect("made").public();
    let pem = fs::read_to_string(&usual).expect("there");
    for (file, text) in [
        (".aws/credentials", "aws_secret_access_key = file-canary"),
        (".ssh/id_ed25519", "ssh-canary"),
    ] {
        let path = home.join(file);
        fs::create_dir_all(path.parent().expect("below")).expect("a folder");
        fs::write(&path, text).expect("written");
    }
    let declarations = dir.path().join("repo");
    fs::create_dir_all(&declarations).expect("a folder");
    fs::write(declarations.join("features.py"), NOSY).expect("written");
    fs::write(declarations.join("requirements.txt"), "# nothing\n").expect("written");
    let context = dir.path().join("context.toml");
    let text = format!(
        "tenant = \"dev\"\naccount = \"123456789012\"\nregion = \"eu-central-1\"\n\
         python = \"{}\"\nartifacts = \"{}\"\nsigning_key = \"{}\"\n\
         [broker]\nurl = \"https://127.0.0.1:1\"\nca = \"/nowhere\"\nserver_name = \"b\"\n\
         token_file = \"/nowhere\"\n",
        python.display(),
        dir.path().display(),
        usual.display(),
    );
    fs::write(&context, text).expect("written");

    for verb in ["plan", "apply"] {
        let output = Command::new(env!("CARGO_BIN_EXE_outstation"))
            .args([verb, ".", "--context"])
            .arg(&context)
            .current_dir(&declarations)
            .env("HOME", &home)
            .env(key::VARIABLE, &pem)
            .env("SSH_AUTH_SOCK", dir.path().join("agent-canary"))
            .env("AWS_ACCESS_KEY_ID", "AKIACANARY")
            .env("AWS_SECRET_ACCESS_KEY", "secret-canary")
            .env("AWS_SESSION_TOKEN", "token-canary")
            .output()
            .expect("runs");
        assert!(!output.status.success(), "{output:?}");
        let found = fs::read_to_string(declarations.join("found.txt")).expect("it has looked");
        fs::remove_file(declarations.join("found.txt")).expect("removed");
        assert!(found.contains("PATH = "), "{found}");
        assert!(found.contains(".aws/credentials = cannot: "), "{found}");
        for secret in ["canary", "CANARY", "PRIVATE KEY", "SIGNING_KEY", "SSH_AUTH", &pem[28..60]] {
            assert!(!found.contains(secret), "{verb}: {secret} is in\n{found}");
        }
        let pipes = found.lines().filter(|line| line.starts_with("open "));
        for open in pipes {
            let harmless = open.contains("pipe:")
                || open.contains("/dev/null")
                || open.contains("features.py");
            assert!(harmless, "{verb}: {open}");
        }
    }

    // The same key, the same variable: `key show` has them, so they were there to be found.
    let shown = Command::new(env!("CARGO_BIN_EXE_outstation"))
        .args(["key", "show", "--name", "ops@example"])
        .env("HOME", dir.path())
        .env(key::VARIABLE, &pem)
        .current_dir(dir.path())
        .env_remove("OUTSTATION_CONTEXT")
        .output()
        .expect("runs");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(
        shown.contains(&format!("{{ name = \"ops@example\", key = \"{public}\" }}")),
        "{shown}"
    );
}

/// Building a package runs its code, as the person who applies.
#[test]
fn no_package_is_built() {
    let Some(python) = std::env::var_os("OUTSTATION_TEST_PYTHON").map(PathBuf::from) else {
        eprintln!("left out: OUTSTATION_TEST_PYTHON is not set (cargo verify sets it)");
        return;
    };
    let dir = tempfile::tempdir().expect("a folder");
    let write = |path: &str, text: &str| {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().expect("below")).expect("a folder");
        fs::write(path, text).expect("written");
    };
    let ran = dir.path().join("ran.txt");
    let setup = format!(
        "open({:?}, 'w').write('it ran')\nfrom setuptools import setup\nsetup(name='nosy', version='1.0')\n",
        ran.display().to_string()
    );
    write("nosy/setup.py", &setup);
    let nosy = dir.path().join("nosy");
    write("repo/requirements.txt", &format!("nosy @ file://{}\n", nosy.display()));
    write(
        "repo/features.py",
        "from outstation import Environment\nEnvironment(name=\"nosy\", requirements=\"requirements.txt\")\n",
    );
    write("token", "token");
    let context = format!(
        "tenant = \"dev\"\naccount = \"123456789012\"\nregion = \"eu-central-1\"\n\
         python = \"{}\"\nartifacts = \"{}\"\n\
         [broker]\nurl = \"https://127.0.0.1:1\"\nca = \"/nowhere\"\nserver_name = \"b\"\n\
         token_file = \"/nowhere\"\n",
        python.display(),
        dir.path().join("artifacts").display(),
    );
    write("context.toml", &context);
    let output = Command::new(env!("CARGO_BIN_EXE_outstation"))
        .args(["plan", ".", "--context", "../context.toml"])
        .current_dir(dir.path().join("repo"))
        .output()
        .expect("runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{told}");
    assert!(told.contains("uv cannot resolve"), "{told}");
    assert!(told.contains("only wheels are taken"), "{told}");
    assert!(!ran.exists(), "its setup.py was run");
}

#[test]
fn key_create_and_show_are_what_they_say() {
    let dir = tempfile::tempdir().expect("a folder");
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_outstation"))
            .args(arguments)
            .env("HOME", dir.path())
            .env_remove(key::VARIABLE)
            .env_remove("OUTSTATION_CONTEXT")
            .current_dir(dir.path())
            .output()
            .expect("runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    let (ok, _, stderr) = run(&["key", "show"]);
    assert!(!ok && stderr.starts_with("error: there is no key to sign orders with\n"), "{stderr}");
    let (ok, made, stderr) = run(&["key", "create", "--name", "ops@example"]);
    assert!(ok && made.contains("signing-key.pem made: only you can read it\n"), "{made}{stderr}");
    let path = dir.path().join(".config/outstation/signing-key.pem");
    assert_eq!(fs::metadata(&path).expect("made").permissions().mode() & 0o777, 0o600);
    let (ok, shown, stderr) = run(&["key", "show", "--name", "ops@example"]);
    assert!(ok && made.ends_with(&shown), "{made}\n{shown}{stderr}");
    let pem = fs::read_to_string(&path).expect("there");
    assert!(!made.contains(pem.lines().nth(1).expect("base64")), "{made}");
    let (ok, _, stderr) = run(&["key", "create"]);
    assert!(!ok && stderr.contains("is there already, and is not overwritten"), "{stderr}");
    assert_eq!(fs::read_to_string(&path).expect("there"), pem);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("set");
    let (ok, _, stderr) = run(&["key", "show"]);
    assert!(
        !ok && stderr.contains("can be read by others (mode 644)\nhint: chmod 600"),
        "{stderr}"
    );
    let (ok, _, stderr) = run(&["key", "create", "other.pem", "--name", "two words"]);
    assert!(!ok && stderr.contains("is no signer's name"), "{stderr}");
    assert!(!dir.path().join("other.pem").exists());
}

/// A process that ends with its test, however that ends.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// With the `ssh-agent` and `ssh-add` of this machine.
#[test]
fn a_key_in_an_ssh_agent_is_found_by_its_signers_name() {
    let on_path = |program: &str| Command::new(program).arg("-?").output().is_ok();
    if !on_path("ssh-agent") || !on_path("ssh-add") || !on_path("ssh-keygen") {
        eprintln!("left out: there is no ssh-agent on this machine");
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let socket = dir.path().join("agent.sock");
    let agent = Ended(
        Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("starts"),
    );
    let add = |name: &str, kind: &str| {
        let file = dir.path().join(name);
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", kind, "-N", "", "-C", name, "-f"])
            .arg(&file)
            .status();
        assert!(made.expect("runs").success());
        // It listens a moment after it was started.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            let mut add = Command::new("ssh-add");
            let added = add.arg("-q").arg(&file).env("SSH_AUTH_SOCK", &socket).output();
            if added.expect("runs").status.success() {
                break;
            }
            assert!(std::time::Instant::now() < until, "the agent takes no key");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };
    add("ecdsa", "ecdsa");
    add("ann", "ed25519");
    add("bob", "ed25519");
    let keys = outstation_cli::ssh_agent::keys(&socket).expect("its keys");
    let names: Vec<&str> = keys.iter().map(|(_, comment)| comment.as_str()).collect();
    assert_eq!(names, ["ann", "bob"], "no other kind");
    let (ann, _) = keys[0];
    let signature = outstation_cli::ssh_agent::sign(&socket, &ann, b"message").expect("signs");
    assert!(ann.has_signed(b"message", &signature));

    let context = dir.path().join("context.toml");
    let show = |key: &str, signers: &str| {
        let text = format!(
            "tenant = \"dev\"\naccount = \"123456789012\"\nregion = \"eu-central-1\"\n\
             python = \"/python\"\nartifacts = \"/store\"\nsigning_key = \"{key}\"\n\
             [broker]\nurl = \"https://127.0.0.1:1\"\nca = \"/r\"\nserver_name = \"b\"\n\
             token_file = \"/t\"\n{signers}"
        );
        fs::write(&context, text).expect("written");
        let output = Command::new(env!("CARGO_BIN_EXE_outstation"))
            .args(["key", "show", "--context"])
            .arg(&context)
            .env("SSH_AUTH_SOCK", &socket)
            .env_remove(key::VARIABLE)
            .output()
            .expect("runs");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let of_ann = format!("[signers]\nkeys = [{{ name = \"ann@example\", key = \"{ann}\" }}]\n");
    for (named, signers, wanted) in [
        ("ssh-agent", of_ann.as_str(), format!("public key   {ann}")),
        ("ssh-agent:ann@example", &of_ann, format!("public key   {ann}")),
        ("ssh-agent:zoe", &of_ann, "has no ed25519 key of a signer; it has ed25519:".to_owned()),
        ("ssh-agent", "", "the ssh-agent has 2 keys that would do".to_owned()),
    ] {
        let shown = show(named, signers);
        assert!(shown.contains(&wanted), "{named}: {shown}");
    }
    drop(agent);
    let shown = show("ssh-agent", &of_ann);
    assert!(shown.contains("ask the ssh-agent at ") && shown.contains("hint: "), "{shown}");
}
