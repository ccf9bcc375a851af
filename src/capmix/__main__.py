"""`python -m capmix` is the command `capmix`."""

from capmix.cli import entry

entry()
