"""The version of the package; `pyproject.toml` has the same one (a test holds them together)."""

VERSION = "0.1.0"
