"""The heading under which a command's own options stand in its help."""

from cyclopts import Group

OWN = Group("Options", sort_key=0)
