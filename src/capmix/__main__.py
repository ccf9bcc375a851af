"""`python -m capmix` runs the `capmix` command."""

from capmix.cli.main import entry

entry()
