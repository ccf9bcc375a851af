"""`python -m capmix` is the command `capmix`."""

from capmix.cli.main import entry

entry()
