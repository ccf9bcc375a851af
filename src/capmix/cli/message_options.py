"""The options of every command: verbosity, log file and form of progress."""

import logging

from capmix.engine.messages import MessageForm, ProgressForm
from capmix.errors import UserError
from capmix.settings.base import Settings, option

MESSAGES = "Messages"


class MessageSettings(Settings):
    """What a command shows on standard error besides errors."""

    quiet: bool = option(False, "Show only warnings and errors.", group=MESSAGES)
    verbose: bool = option(False, "Also show each finished part.", group=MESSAGES)
    log_file: str | None = option(
        None, "Append messages and progress to this file.", group=MESSAGES, metavar="FILE"
    )
    progress: ProgressForm = option(
        "auto",
        "Form of progress; auto = a bar on a terminal, otherwise a plain line every 30 s.",
        group=MESSAGES,
    )

    def form(self) -> MessageForm:
        """Return the form of messages. Raises UserError if options contradict each other."""
        if self.quiet and self.verbose:
            raise UserError("--quiet and --verbose cannot be combined")
        level = logging.WARNING if self.quiet else logging.INFO
        return MessageForm(logging.DEBUG if self.verbose else level, self.progress, self.log_file)
