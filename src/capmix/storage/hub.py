"""Check that the Hugging Face Hub can be reached, before any other request.

Without a network, its client retries for minutes, or raises errors that mention neither the Hub
nor a fix.
"""

import threading

from capmix.errors import UserError

ANSWER_WITHIN = 8.0  # seconds, including the DNS lookup, which client timeouts do not cover
SHOWN = 200  # characters shown of a network error


def need_hub(what: str) -> None:
    """Raise UserError, starting with `what`, if the Hub does not respond within ANSWER_WITHIN s.

    Any response is accepted. Raises ImportError if huggingface_hub is not installed.
    """
    from huggingface_hub import constants

    address = constants.ENDPOINT
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{what}: HF_HUB_OFFLINE is set; unset it, or pass a local directory")
    why = _silence(address)
    if why:
        raise UserError(
            f"{what}: {address} cannot be reached ({why}). Check the network, HF_ENDPOINT and "
            "HTTPS_PROXY and rerun the same command, or pass a local directory"
        )


def _silence(address: str) -> str:
    """Return why an address does not respond; "" if it does."""
    found: list[str] = []

    def ask() -> None:
        from huggingface_hub import get_session

        try:
            get_session().head(address, timeout=ANSWER_WITHIN)
            found.append("")
        except Exception as error:  # depends on the HTTP library
            found.append(" ".join(str(error).split())[:SHOWN] or type(error).__name__)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_WITHIN)
    return found[0] if found else f"no response within {ANSWER_WITHIN:g} s"
