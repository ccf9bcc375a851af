"""The embedded demo captioner: samples phrases from a fixed bank instead of writing sentences.

Phrase k of an image is drawn from the K nearest phrases of the bank with the probabilities
softmax(similarity x scale / temperature): top-K sampling as in the paper (arXiv 2307.10350), but
over phrases instead of tokens. Its projection was trained separately from the demo scorer's, so
that the scorer does not evaluate its own output.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from capmix.caption.captioner import Caption
from capmix.caption.settings import CaptionSettings
from capmix.mini.head import Head
from capmix.mini.image_tower import LiteTower
from capmix.mini.text_tower import FILES as TEXT_FILES
from capmix.mini.weights import MINI_PACKAGES, digest, load_weights, models_folder

PHRASES = "phrases.txt"


class MiniCaptioner:
    """Samples from the phrases with the nearest embeddings. `temperature` 0 selects the nearest."""

    extra: ClassVar[str | None] = "mini"
    packages: ClassVar[tuple[str, ...]] = MINI_PACKAGES
    device: ClassVar[str] = "cpu"
    needs_images: ClassVar[bool] = True

    def __init__(
        self,
        settings: CaptionSettings = CaptionSettings(),
        source: str = "",
        encoder: LiteTower | None = None,
    ):
        self.encoder = encoder or LiteTower()
        self.sampling = settings
        self._head = Head("captioner")
        self._scale = float(load_weights("captioner")["scale"][0])
        self._phrases = (models_folder() / PHRASES).read_text("utf-8").splitlines()
        self._vectors = self._head.encode_texts(self._phrases).astype(np.float64)
        files = ("captioner.safetensors", "imagenet_names.safetensors", PHRASES, *TEXT_FILES)
        self.settings: dict[str, Any] = {
            "model": "mini",
            "weights": digest(*files),
            "top_k": settings.top_k,
            "temperature": settings.temperature,
            "captions_per_image": settings.captions_per_image,
            "seed": settings.seed,
        }
        self.provenance = self.encoder.provenance

    def caption(
        self, embeddings: np.ndarray, uids: Sequence[str], source: str
    ) -> list[list[Caption]]:
        """Return K captions for each of N images, from image features float16 (N, 1280)."""
        # One image at a time: the rounding of a matrix product depends on its number of rows, and
        # a caption must not depend on the batch size.
        rows = (self._vectors @ self._head.project_images(row[None])[0] for row in embeddings)
        return [self._sample(row, uid, source) for row, uid in zip(rows, uids, strict=True)]

    def _sample(self, similarity: np.ndarray, uid: str, source: str) -> list[Caption]:
        sampling = self.sampling
        nearest = np.argsort(-similarity, kind="stable")[: sampling.top_k]
        logits = similarity[nearest] * self._scale
        chosen = []
        for k in range(sampling.captions_per_image):
            if sampling.temperature == 0:
                chosen.append(nearest[0])
                continue
            # The argmax of logits + Gumbel noise is an exact draw from their softmax.
            noise = gumbel(f"{sampling.seed}/{uid}/{source}/{k}", len(nearest))
            chosen.append(nearest[int(np.argmax(logits / sampling.temperature + noise))])
        return [Caption(self._phrases[i]) for i in chosen]


def gumbel(name: str, count: int) -> np.ndarray:
    """Return `count` standard Gumbel draws, float64, seeded only by `name`."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big")
    uniform = np.random.Generator(np.random.Philox(key=key)).random(count)
    noise: np.ndarray = -np.log(-np.log(np.maximum(uniform, 1e-300)))
    return noise
