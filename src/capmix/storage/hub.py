"""Whether the Hugging Face Hub answers, asked once before anything else is.

Without a network its client tries for minutes, or ends in errors that name neither the Hub nor a
cure.
"""

import threading

from capmix.errors import UserError

ANSWER_WITHIN = 8.0  # seconds, with the look-up of the name, which no time-out of the client bounds
SHOWN = 200  # characters of an error of the network


def need_hub(what: str) -> None:
    """Raise UserError that begins with `what` where the Hub gives no answer within ANSWER_WITHIN
    seconds, and ImportError where its client is not installed. Any answer will do."""
    from huggingface_hub import constants

    address = constants.ENDPOINT
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{what}: HF_HUB_OFFLINE is set; unset it, or name a local directory")
    why = _silence(address)
    if why:
        raise UserError(
            f"{what}: {address} cannot be reached ({why}). Check the network, HF_ENDPOINT and "
            "HTTPS_PROXY and rerun the same command, or name a local directory"
        )


def _silence(address: str) -> str:
    """Why no answer comes from an address; "" where one does."""
    found: list[str] = []

    def ask() -> None:
        from huggingface_hub import get_session

        try:
            get_session().head(address, timeout=ANSWER_WITHIN)
            found.append("")
        except Exception as error:  # whatever its HTTP library raises
            found.append(" ".join(str(error).split())[:SHOWN] or type(error).__name__)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_WITHIN)
    return found[0] if found else f"no answer within {ANSWER_WITHIN:g} s"
