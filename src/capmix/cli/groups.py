"""The help heading of a command's own options."""

from cyclopts import Group

OWN = Group("Options", sort_key=0)
