"""Captions by an OpenAI-compatible server: vLLM, SGLang, llama.cpp, hosted ones.

`server:URL` or `server:URL#MODEL`, where URL ends in /v1. The image's own bytes go out. Requests
run in the threads that prepare samples, so as many are under way as `concurrency` says, at every
moment; one that keeps failing is one failed sample.
"""

import base64
import io
import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import Any, ClassVar

from PIL import Image

from capmix.caption.captioner import Caption
from capmix.caption.sampling import caption_key
from capmix.caption.settings import CaptionSettings
from capmix.engine.batches import SampleError
from capmix.errors import UserError
from capmix.models.images import decode_image
from capmix.pool import Sample
from capmix.storage.filesystem import without_secrets

log = logging.getLogger(__name__)

PREFIX = "server:"
KEY_VARIABLE = "CAPMIX_SERVER_KEY"
PROMPT = "Describe this image in one sentence."
MIME_TYPES = {"jpg": "jpeg", "jpeg": "jpeg", "png": "png", "webp": "webp"}
RETRIED = (408, 425, 429, 500, 502, 503, 504)
FIRST_WAIT = 0.5  # seconds; each further wait is twice as long
LONGEST_WAIT = 30.0
OPTIONAL = ("top_k", "min_tokens", "seed", "n")
MAX_ANSWER_BYTES = 4 * 2**20
GIVE_UP_AFTER = 2  # times as many failures in a row as requests run at once


class ServerCaptioner:
    """Asks a server. Raises UserError where it is not there or has no such model."""

    extra: ClassVar[str | None] = None
    packages: ClassVar[tuple[str, ...]] = ()
    device: ClassVar[str] = "remote"
    needs_images: ClassVar[bool] = True

    def __init__(self, settings: CaptionSettings, source: str = ""):
        import urllib3

        self._wanted = settings
        self._source = source
        self.prompt = settings.prompt or PROMPT
        url, _, model = settings.model.removeprefix(PREFIX).partition("#")
        self._url = url.rstrip("/")
        if not self._url.startswith(("http://", "https://")):
            raise UserError(f"captioner {settings.model}: expected server:http://HOST:PORT/v1")
        if without_secrets(self._url) != self._url:
            raise UserError(
                f"captioner {without_secrets(settings.model)}: the address holds a secret, which "
                f"would be written to every marker; give the server's key in {KEY_VARIABLE}"
            )
        self.workers = settings.concurrency
        self.batch_size = settings.concurrency
        self._pool = urllib3.PoolManager(
            maxsize=settings.concurrency, block=True, timeout=settings.timeout, retries=False
        )
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not self._key.isascii() or not self._key.isprintable():
            raise UserError(f"{KEY_VARIABLE}: the API key must be a single line of printable ASCII")
        self._headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._lock = threading.Lock()
        self._failed_in_a_row = 0
        self.model = model or self._only_model()
        self._fields = self._accepted_fields()
        ignored = [name for name in OPTIONAL[:-1] if name not in self._fields]
        if ignored:
            log.warning("%s does not accept %s: not sent", self._url, ", ".join(ignored))
        self.settings: dict[str, Any] = {
            "model": f"{PREFIX}{self._url}#{self.model}",
            "prompt": self.prompt,
            "max_side": settings.max_side,
            **settings.sampling(),
            **dict.fromkeys(ignored, None),
        }
        self.provenance: dict[str, Any] = {}

    def prepare(self, sample: Sample) -> list[Caption]:
        """The captions of one image. Raises BadImageError, or SampleError if the server fails."""
        body = self._body(self._data_url(sample), self._fields)
        captions: list[Caption] = []
        while len(captions) < self._wanted.captions_per_image:
            if "seed" in body:
                body["seed"] = self._seed(sample.uid, len(captions))
            captions += self._ask(body)
        return captions[: self._wanted.captions_per_image]

    def caption(
        self, prepared: Sequence[list[Caption]], uids: Sequence[str], source: str
    ) -> list[list[Caption]]:
        """What `prepare` has brought."""
        return list(prepared)

    def _seed(self, uid: str, k: int) -> int:
        return caption_key(self._wanted.seed, uid, self._source, k) % 2**31

    def _data_url(self, sample: Sample) -> str:
        """The image's own bytes; a JPEG of `max_side` where the image is larger than asked for."""
        image = decode_image(sample.image)  # what is no image is not sent
        mime, data, side = MIME_TYPES[sample.suffix], sample.image, self._wanted.max_side
        if side and max(image.size) > side:
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
            out = io.BytesIO()
            image.save(out, "JPEG", quality=95)
            mime, data = "jpeg", out.getvalue()
        return f"data:image/{mime};base64," + base64.b64encode(data).decode()

    def _body(self, image_url: str, fields: Sequence[str]) -> dict[str, Any]:
        wanted = self._wanted
        content = [
            {"type": "image_url", "image_url": {"url": image_url}},
            {"type": "text", "text": self.prompt},
        ]
        optional = {
            "top_k": wanted.top_k,
            "min_tokens": wanted.min_tokens,
            "seed": 0,
            "n": wanted.captions_per_image,
        }
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": wanted.max_tokens,
            "temperature": wanted.temperature,
            **{name: optional[name] for name in fields},
        }

    def _accepted_fields(self) -> tuple[str, ...]:
        """The optional fields that the server takes, found by asking about a blank image.

        `top_k` and `min_tokens` are vLLM's and SGLang's; OpenAI's own API refuses them.
        """
        blank = io.BytesIO()
        Image.new("RGB", (32, 32), "white").save(blank, "PNG")
        url = "data:image/png;base64," + base64.b64encode(blank.getvalue()).decode()
        problem = ""
        for fields in (OPTIONAL, OPTIONAL[2:], OPTIONAL[2:3], ()):
            try:
                self._post(self._body(url, fields))
                return fields
            except SampleError as error:
                problem = str(error)
                if error.reason != "refused":
                    break
        raise UserError(f"captioner {self._wanted.model}: a first request failed: {problem}")

    def _ask(self, body: dict[str, Any]) -> list[Caption]:
        answer = self._post(body)
        try:
            captions = [_caption(choice) for choice in answer["choices"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise SampleError(
                "bad_answer", f"{self._url}: no choices in {self._without_key(str(answer))[:200]}"
            ) from error
        if not captions:
            raise SampleError("bad_answer", f"{self._url}: an empty list of choices")
        return captions

    def _post(self, body: dict[str, Any]) -> Any:
        """The parsed answer. Time-outs and busy servers are asked again, `retries` times."""
        import urllib3

        wait, problem = FIRST_WAIT, ""
        for attempt in range(self._wanted.retries + 1):
            if attempt:
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)
            try:
                response, data = self._answer(body)
            except urllib3.exceptions.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if response.status == 200:
                self._failed_in_a_row = 0
                return self._json(data)
            problem = f"status {response.status}: {self._without_key(str(data))[:200]}"
            if response.status in (400, 422):
                raise SampleError("refused", f"{self._url}: {problem}")
            if response.status not in RETRIED:
                break
            wait = max(wait, _retry_after(response))
        with self._lock:
            self._failed_in_a_row += 1
            if self._failed_in_a_row > GIVE_UP_AFTER * self.workers:
                raise UserError(
                    f"captioner {PREFIX}{self._url}: {self._failed_in_a_row} requests failed in a "
                    f"row ({problem}). Fix the server and rerun: finished shards are kept."
                )
        raise SampleError("server_error", f"{self._url}: {problem}")

    def _answer(self, body: dict[str, Any]) -> tuple[Any, bytes]:
        """The response and its bytes. Raises urllib3's errors, and SampleError where they are too
        many."""
        response = self._pool.request(
            "POST",
            f"{self._url}/chat/completions",
            json=body,
            headers=self._headers,
            preload_content=False,
        )
        data = response.read(MAX_ANSWER_BYTES + 1)
        is_too_long = len(data) > MAX_ANSWER_BYTES
        if is_too_long:
            response.close()
        response.release_conn()
        if is_too_long:
            raise SampleError("bad_answer", f"{self._url}: over {MAX_ANSWER_BYTES} bytes")
        return response, data

    def _json(self, data: bytes) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            start = self._without_key(str(data))[:100]
            raise SampleError("bad_answer", f"{self._url}: expected json, got {start}") from error

    def _without_key(self, text: str) -> str:
        """An answer as it may be shown: some servers repeat the key that they refuse."""
        return text.replace(self._key, "...") if self._key else text

    def _only_model(self) -> str:
        """The model that the server offers, where it offers one."""
        import urllib3

        hint = "Start the server, or name it as server:http://HOST:PORT/v1#MODEL"
        try:
            response = self._pool.request("GET", f"{self._url}/models", headers=self._headers)
            found = [str(model["id"]) for model in response.json()["data"]]
        except (urllib3.exceptions.HTTPError, ValueError, KeyError, TypeError) as error:
            problem = f"{type(error).__name__}: {error}"[:300]
            raise UserError(f"captioner {PREFIX}{self._url}: {problem}. {hint}.") from error
        if len(found) != 1:
            names = ", ".join(found) or "none"
            raise UserError(f"captioner {PREFIX}{self._url} offers {names}: name one after a #")
        return found[0]


def _caption(choice: dict[str, Any]) -> Caption:
    text = (choice["message"]["content"] or "").encode("utf-8", "replace").decode()
    return Caption(text.strip(), "length" if choice.get("finish_reason") == "length" else "stop")


def _retry_after(response: Any) -> float:
    """Seconds that a busy server asks for, within bounds."""
    value = response.headers.get("Retry-After", "")
    return min(float(value), LONGEST_WAIT) if value.isdigit() else 0.0
