"""The options of every command: which messages are shown, how progress is, and a log file."""

import logging

from capmix.engine.messages import MessageForm, ProgressForm
from capmix.errors import UserError
from capmix.settings.base import Settings, option

MESSAGES = "Messages"


class MessageSettings(Settings):
    """What a command shows on standard error beside its errors."""

    quiet: bool = option(False, "Show warnings and errors alone.", group=MESSAGES)
    verbose: bool = option(False, "Show each finished part too.", group=MESSAGES)
    log_file: str | None = option(
        None, "Append messages and progress to this file.", group=MESSAGES, metavar="FILE"
    )
    progress: ProgressForm = option(
        "auto",
        "How to show progress; auto = bar on a terminal, else a plain line every 30 s.",
        group=MESSAGES,
    )

    def form(self) -> MessageForm:
        """Raises UserError where options contradict each other."""
        if self.quiet and self.verbose:
            raise UserError("--quiet and --verbose: give one of the two")
        level = logging.WARNING if self.quiet else logging.INFO
        return MessageForm(logging.DEBUG if self.verbose else level, self.progress, self.log_file)
