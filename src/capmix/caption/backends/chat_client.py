"""Requests to an OpenAI-compatible server: what it accepts, retries, and bounds of its responses.

A request that fails after all retries fails one sample.
"""

import json
import logging
import os
import re
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any

from capmix.caption.backends.bounded_http import (
    BoundedClient,
    NoAnswerError,
    UnusableAnswerError,
)
from capmix.caption.captioner import Caption
from capmix.caption.sampling import caption_key
from capmix.caption.settings import CaptionSettings
from capmix.engine.batches import SampleError
from capmix.errors import UserError
from capmix.storage.filesystem import without_secrets

log = logging.getLogger(__name__)

PREFIX = "server:"
KEY_VARIABLE = "CAPMIX_SERVER_KEY"
RETRIED = (408, 425, 429, 500, 502, 503, 504)
FIRST_WAIT = 0.5  # seconds; each further wait is twice as long
LONGEST_WAIT = 30.0
OPTIONAL = ("top_k", "min_tokens", "seed", "n")
MAX_CAPTION = 2**16  # characters; bounds memory, as the texts of a whole shard are held in memory
LONGEST_SHOWN = 200  # characters of a response quoted in a message
NAMES_SHOWN = 20
LONGEST_NAME = 500
THINK = re.compile(r"</?think>", re.IGNORECASE)
SECONDS = re.compile(r"[0-9]+")
HTTP_DATE = re.compile(
    r"[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT"
)
GIVE_UP_AFTER = 2  # consecutive failures, as a multiple of the concurrency


class ChatClient:
    """A model of a server, that answers a message of the user with texts of `source`.

    `settings.model` is `server:URL` or `server:URL#MODEL`. `role` begins error messages, and `test`
    is the content of the message that tests what the server accepts. Raises UserError if the server
    is unreachable or lacks the model.
    """

    def __init__(self, settings: CaptionSettings, source: str, role: str, test: Any):
        self._wanted, self._source, self._role = settings, source, role
        url, _, model = settings.model.removeprefix(PREFIX).partition("#")
        self._url = url.rstrip("/")
        if not self._url.startswith(("http://", "https://")):
            raise UserError(f"{self._role} {settings.model}: expected server:http://HOST:PORT/v1")
        if without_secrets(self._url) != self._url:
            raise UserError(
                f"{self._role} {without_secrets(settings.model)}: the URL contains a secret, which "
                f"would be written to every marker; set {KEY_VARIABLE} to the server's key instead"
            )
        self._client = BoundedClient(settings.timeout, settings.concurrency)
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not self._key.isascii() or not self._key.isprintable():
            raise UserError(f"{KEY_VARIABLE}: the API key must be a single line of printable ASCII")
        self._headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._lock = threading.Lock()
        self._failed_in_a_row = 0
        self._model = model or self._only_model()
        self._fields = self._accepted_fields(test)
        self._ignored = [name for name in OPTIONAL[:-1] if name not in self._fields]
        if self._ignored:
            log.warning("%s does not accept %s: not sent", self._url, ", ".join(self._ignored))

    def settings(self, **own: Any) -> dict[str, Any]:
        """Return the settings of what the server writes, with those of the caller."""
        return {
            "model": f"{PREFIX}{self._url}#{self._model}",
            **own,
            **self._wanted.sampling(),
            **dict.fromkeys(self._ignored, None),
        }

    def texts(self, content: Any, draw_name: str, numbers: range) -> list[Caption]:
        """Return the texts `numbers` for a message of the user.

        Raises SampleError if a request fails.
        """
        if not numbers:
            return []
        body = self._body(content, self._fields, len(numbers))
        found: list[Caption] = []
        while len(found) < len(numbers):  # the server may return fewer of them at once
            if "seed" in body:
                body["seed"] = self._seed(draw_name, numbers[len(found)])
            found += self._ask(body)
        return found[: len(numbers)]

    def _seed(self, draw_name: str, k: int) -> int:
        """Return the seed of text k of a sample."""
        return caption_key(self._wanted.seed, draw_name, self._source, k) % 2**31

    def check_any(self, texts: Sequence[Caption]) -> None:
        """Raise SampleError if all texts of a sample are empty."""
        if not any(one.text for one in texts):
            raise SampleError(
                "empty_answer",
                f"{self._url}: no text, or none after <think> (finish: {texts[0].finish}); "
                "increase --max-tokens or disable the model's reasoning",
            )

    def _body(
        self, content: Any, fields: Sequence[str], captions: int | None = None
    ) -> dict[str, Any]:
        """Return the body of a request with one message of the user."""
        wanted = self._wanted
        optional = {
            "top_k": wanted.top_k,
            "min_tokens": wanted.min_tokens,
            "seed": 0,
            "n": captions or wanted.captions_per_image,
        }
        return {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": wanted.max_tokens,
            "temperature": wanted.temperature,
            **{name: optional[name] for name in fields},
        }

    def _accepted_fields(self, test: Any) -> tuple[str, ...]:
        """Return the optional fields that the server accepts, tested with a message.

        vLLM and SGLang accept `top_k` and `min_tokens`; OpenAI's API rejects them.
        """
        problem = ""
        for fields in (OPTIONAL, OPTIONAL[2:], OPTIONAL[2:3], ()):
            try:
                self._json(self._post(self._body(test, fields)))
                return fields
            except SampleError as error:
                problem = str(error)
                if error.reason != "refused":
                    break
        raise UserError(f"{self._role} {self._wanted.model}: test request failed: {problem}")

    def _ask(self, body: dict[str, Any]) -> list[Caption]:
        answer = self._post(body)
        try:
            captions = [_caption(choice) for choice in self._json(answer)["choices"]]
        except (KeyError, TypeError) as error:
            problem = f"expected choices with a text, got {self._shown(answer)}"
            raise SampleError("bad_answer", f"{self._url}: {problem}") from error
        if not captions:
            raise SampleError("bad_answer", f"{self._url}: the list of choices is empty")
        if max(len(caption.text) for caption in captions) > MAX_CAPTION:
            raise SampleError(
                "bad_answer", f"{self._url}: the text is longer than {MAX_CAPTION} characters"
            )
        return captions

    def _post(self, body: dict[str, Any]) -> bytes:
        """Return the body of a 200 response. Retries timeouts and transient errors."""
        url = f"{self._url}/chat/completions"
        wait, problem = FIRST_WAIT, ""
        for attempt in range(self._wanted.retries + 1):
            if attempt:
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)
            try:
                answer = self._client.request("POST", url, self._headers, body)
            except NoAnswerError as error:
                problem = self._without_key(str(error))[:LONGEST_SHOWN]
                continue
            except UnusableAnswerError as error:
                raise SampleError(
                    "bad_answer", f"{self._url}: {self._without_key(str(error))}"
                ) from error
            if answer.status == 200:
                self._failed_in_a_row = 0
                return answer.data
            problem = f"status {answer.status}: {self._shown(answer.data)}"
            if answer.status in (400, 422):
                raise SampleError("refused", f"{self._url}: {problem}")
            if answer.status not in RETRIED:
                break
            wait = max(wait, _retry_after(answer.retry_after))
        with self._lock:
            self._failed_in_a_row += 1
            if self._failed_in_a_row > GIVE_UP_AFTER * self._wanted.concurrency:
                raise UserError(
                    f"{self._role} {PREFIX}{self._url}: {self._failed_in_a_row} requests failed in "
                    f"a row ({problem}). Fix the server and rerun: finished shards are kept."
                )
        raise SampleError("server_error", f"{self._url}: {problem}")

    def _json(self, data: bytes) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            problem = f"expected json, got {self._shown(data)}"
            raise SampleError("bad_answer", f"{self._url}: {problem}") from error

    def _shown(self, data: bytes) -> str:
        """Return the start of a response as one printable line."""
        return repr(self._without_key(data.decode("utf-8", "replace"))[:LONGEST_SHOWN])

    def _without_key(self, text: str) -> str:
        """Remove the API key from a response: some servers quote a rejected key."""
        return text.replace(self._key, "...") if self._key else text

    def _only_model(self) -> str:
        """Return the server's model. Raises UserError unless it serves exactly one."""
        try:
            found = self._offered()
        except (NoAnswerError, UnusableAnswerError, SampleError) as error:
            problem = self._without_key(str(error))[:LONGEST_SHOWN]
            raise UserError(
                f"{self._role} {PREFIX}{self._url}: {problem}. Start the server, or name the model "
                "as server:http://HOST:PORT/v1#MODEL."
            ) from error
        if len(found) != 1:
            more = f" and {len(found) - NAMES_SHOWN} more" if len(found) > NAMES_SHOWN else ""
            names = ", ".join(found[:NAMES_SHOWN]) + more if found else "none"
            raise UserError(
                f"{self._role} {PREFIX}{self._url} serves {names}; append #MODEL to the URL"
            )
        return found[0]

    def _offered(self) -> list[str]:
        """Return the names of the server's models. Raises the client's errors and SampleError."""
        answer = self._client.request("GET", f"{self._url}/models", self._headers)
        shown = self._shown(answer.data)
        if answer.status != 200:
            raise SampleError("server_error", f"status {answer.status}: {shown}")
        try:
            names = [model["id"] for model in self._json(answer.data)["data"]]
        except (KeyError, TypeError):
            names = [None]
        if not all(map(_is_name, names)):
            raise SampleError("bad_answer", f"expected a list of models, got {shown}")
        return names


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and name.isprintable() and 0 < len(name) <= LONGEST_NAME


def _caption(choice: Any) -> Caption:
    """Parse one choice. Raises KeyError or TypeError if its structure is unexpected."""
    content = choice["message"]["content"]
    if not isinstance(content, str | None):
        raise TypeError("expected a text")
    text = _without_reasoning(content or "").encode("utf-8", "replace").decode()
    return Caption(text.strip(), "length" if choice.get("finish_reason") == "length" else "stop")


def _without_reasoning(text: str) -> str:
    """Return the text after a reasoning model's thoughts; empty if the thoughts do not end.

    `<think>` may be part of the prompt, so the response may contain only `</think>`.
    """
    tags = THINK.findall(text)
    if tags and tags[-1].lower() == "<think>":
        return ""
    return THINK.split(text)[-1]


def _retry_after(value: str) -> float:
    """Return the seconds of a Retry-After header, at most LONGEST_WAIT; 0 if it is malformed."""
    seconds = 0.0
    if SECONDS.fullmatch(value):
        seconds = float(value)
    elif HTTP_DATE.fullmatch(value):
        with suppress(ValueError):  # an invalid date such as 31 February
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
    return min(max(seconds, 0.0), LONGEST_WAIT)
