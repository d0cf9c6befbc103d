"""`python -m outstation.declare`: the manifest, byte for byte, and the two lines of an error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
from conftest import HEAD, PATIENCE_SECS, child_env

GOLDEN = Path(__file__).parent / "golden"

ENVIRONMENT = 'Environment(name="flights", requirements="requirements.txt")\n'
GROUP = (
    'TransformServerGroup(name="delay_tsg", environment="flights", '
    "scaling_config=ProvisionedScalingConfig(desired_nodes=3))\n"
)
VIEW = """\
@realtime_feature_view(sources=[RequestSource(schema=[Field("x", Int64)])], mode="python",
                       features=[Attribute("y", Int64)])
def speed(source):
    return {"y": source["x"]}
"""
SERVICE = 'FeatureService(name="delay", features=[speed], transform_server_group="delay_tsg")\n'


def declare(folder: Path, *arguments: str, cwd: Optional[Path] = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "outstation.declare", str(folder), *arguments],
        env=child_env(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECS,
        cwd=cwd or (folder if folder.is_dir() else None),
    )


def test_the_manifest_is_golden() -> None:
    done = declare(GOLDEN / "declarations")
    assert (done.returncode, done.stderr) == (0, "")
    manifest = json.loads(done.stdout)
    manifest["python"] = "3.11"  # whichever runs the tests
    assert json.dumps(manifest, indent=2, ensure_ascii=False) + "\n" == (
        GOLDEN / "manifest.json"
    ).read_text(encoding="utf-8")


def test_the_listing_is_golden() -> None:
    done = declare(GOLDEN / "declarations", "--text")
    assert done.stdout == (GOLDEN / "listing.txt").read_text(encoding="utf-8")


def test_nothing_but_the_manifest_reaches_stdout(folder: Callable[..., Path]) -> None:
    noise = """
    import atexit, os, subprocess, sys
    print("print")
    sys.__stdout__.write("dunder\\n"); sys.__stdout__.flush()
    os.write(1, b"descriptor\\n")
    subprocess.run(["echo", "child"])
    atexit.register(lambda: os.write(1, b"exit\\n"))
    """
    done = declare(folder(features=noise))
    assert done.returncode == 0
    assert json.loads(done.stdout)["groups"] == [] and done.stdout.count("\n") == 1
    for words in ("print", "dunder", "descriptor", "child", "exit"):
        assert words in done.stderr


def test_features_py_is_all_if_there_is_one(folder: Callable[..., Path]) -> None:
    explode = "raise RuntimeError"
    path = folder(
        features=HEAD + ENVIRONMENT + "import common", common=HEAD + GROUP, other=explode, requirements_txt=""
    )
    manifest = json.loads(declare(path).stdout)
    assert [group["name"] for group in manifest["groups"]] == ["delay_tsg"]
    assert not (path / "__pycache__").exists()


def test_otherwise_every_module_but_tests_and_private_ones(folder: Callable[..., Path]) -> None:
    explode = "raise RuntimeError"
    path = folder(
        b=HEAD + "from a import speed\n" + GROUP + SERVICE,
        a=HEAD + ENVIRONMENT + VIEW,
        conftest=explode,
        test_x=explode,
        x_test=explode,
        _private=explode,
        setup=explode,
        requirements_txt="",
    )
    done = declare(path)
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert [len(manifest[k]) for k in ("environments", "groups", "feature_views", "feature_services")] == [1] * 4


ERRORS = [
    # features.py (after two lines of imports), line of the error, error, hint
    ("1 / 0", 3, "ZeroDivisionError: division by zero", "correct what"),
    ("def f(:", 3, "SyntaxError: invalid syntax", "correct the syntax"),
    ("import no_such_module", 3, "No module named 'no_such_module'", "inside of the function that uses it"),
    ("from outstation import OnDemandFeatureView", 3, "cannot import name", "outstation has Attribute, "),
    ("from outstation.types import Float32", 3, "cannot import name", "outstation.types has Array, Bool"),
    ("import sys; sys.exit(0)", 3, "SystemExit: 0", "must not exit"),
    ("Environment(name='e', requirement='r')", 3, "has no argument 'requirement'", "did you mean 'requirements'"),
    ("\n\n" + ENVIRONMENT, 5, "'requirements.txt', which does not exist", "create"),
    (GROUP, 3, "wants environment 'flights', which is not declared", 'declare Environment(name="flights"'),
    (GROUP.replace('environment="flights", ', ""), 3, "has no environment", "add environment="),
    (ENVIRONMENT.replace("requirements.txt", "../r.txt"), 3, "outside of the folder", "keep the file with"),
    (ENVIRONMENT.replace("requirements.txt", "/etc/passwd"), 3, "outside of the folder", ""),
    (ENVIRONMENT.replace("requirements.txt", "features.py") * 2, 4, "has the name of one at features.py:3", "unique"),
    (VIEW + SERVICE, 7, "wants transform server group 'delay_tsg', which is not declared", "declare TransformServerGroup"),
    (VIEW + SERVICE.replace(', transform_server_group="delay_tsg"', ""), 7, "has no transform server group", "add transform_server_group="),
    (VIEW + VIEW, 7, "feature view 'speed' has the name of one at features.py:3", "rename"),
    (VIEW + SERVICE.replace('"delay"', '"speed"'), 7, "feature service 'speed' has the name of feature view at features.py:3", ""),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(ERRORS)))
def test_an_error_is_two_lines_with_the_users_line(index: int, folder: Callable[..., Path]) -> None:
    text, line, error, hint = ERRORS[index]
    path = folder()
    (path / "features.py").write_text(HEAD + text + "\n")
    done = declare(path)
    assert (done.returncode, done.stdout) == (1, "")
    first, second = done.stderr.splitlines()
    assert first.startswith(f"error: features.py:{line}: "), first
    assert error in first and second.startswith("hint: ") and hint in second, done.stderr


def test_a_field_with_two_types_in_one_service(folder: Callable[..., Path]) -> None:
    other = VIEW.replace("speed", "other").replace('Field("x", Int64)', 'Field("x", Float64)')
    both = SERVICE.replace("[speed]", "[speed, other]")
    path = folder()
    (path / "features.py").write_text(HEAD + VIEW + other + both + GROUP + ENVIRONMENT)
    (path / "requirements.txt").touch()
    done = declare(path)
    assert "takes field 'x' as Int64 for 'speed' and as Float64 for 'other'" in done.stderr


def test_folders_that_hold_nothing(folder: Callable[..., Path], tmp_path: Path) -> None:
    for path, says in [(tmp_path / "nowhere", "is not a folder"), (folder(), "no declarations in")]:
        done = declare(path)
        assert done.returncode == 1 and says in done.stderr and "hint: " in done.stderr


def test_a_file_that_python_has_by_another_name(folder: Callable[..., Path]) -> None:
    # From another folder: `python -m` itself would import the user's file in place of its own.
    done = declare(folder(json=HEAD), cwd=Path("/"))
    assert done.returncode == 1 and "'json' is the name of another module" in done.stderr


def golden_inputs() -> Any:  # pragma: no cover - run by hand after a wanted change
    """`python tests/test_declare.py`: rewrites the golden files, to be reviewed."""
    done = declare(GOLDEN / "declarations")
    manifest = json.loads(done.stdout)
    manifest["python"] = "3.11"
    (GOLDEN / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    (GOLDEN / "listing.txt").write_text(declare(GOLDEN / "declarations", "--text").stdout)


if __name__ == "__main__":
    golden_inputs()
