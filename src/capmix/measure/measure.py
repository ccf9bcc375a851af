"""Measure the texts of a pool by source: diversity, image-text similarity and topics."""

import logging
from collections.abc import Sequence
from typing import Any

from capmix.engine.settings import EngineSettings
from capmix.errors import UserError
from capmix.measure.coverage import measure_coverage
from capmix.measure.population import Population, measure_population
from capmix.measure.references import SOURCE, load_references, measure_references
from capmix.measure.sampled import measure_sampled
from capmix.measure.settings import MeasureSettings
from capmix.pool import Pool
from capmix.score.scorer import Scorer
from capmix.storage.store import Store

log = logging.getLogger(__name__)


def measure(
    store: Store,
    pool: Pool,
    scorer: str | None,
    sources: Sequence[str],
    scored: Sequence[str],
    settings: MeasureSettings = MeasureSettings(),
    text_encoder: Scorer | None = None,
    engine: EngineSettings = EngineSettings(),
) -> dict[str, Any]:
    """Compute all measures. Each part is stored in measures/ and reused until its inputs change.

    `sources` are the sources to measure; those in `scored` have scores by `scorer`. `text_encoder`
    is a scorer with a text tower: topics need one, and RefCLIPScore needs the one that is measured.
    Returns `population` (population.py), `sampled` (sampled.py), `references` and `coverage`. The
    last two are None if not requested or not possible.
    """
    if settings.references and not settings.references.startswith(SOURCE):
        load_references(settings.references)  # report errors before the pass over the pool
    population = Population(store, pool, scorer, sources, scored, settings)
    found: dict[str, Any] = {"population": measure_population(population, engine)}
    digests = found["population"]["digests"]
    shards = [shard.name for shard in pool.shards]
    found["sampled"] = measure_sampled(store, digests, sources, shards, settings)
    if found["sampled"]["tagger"] is None:
        log.warning("measure: nouns need a tagger, skipped: pip install 'capmix[measure]'")
    found["references"] = found["coverage"] = None
    if settings.references:
        same = text_encoder if text_encoder is not None and text_encoder.name == scorer else None
        found["references"] = measure_references(
            population, settings.references, settings.java, same
        )
    if settings.topics and text_encoder is None:
        log.info("measure: topics need a text tower, skipped; select a scorer with --model")
    elif settings.topics and text_encoder is not None:
        try:
            found["coverage"] = measure_coverage(store, digests, sources, settings, text_encoder)
        except UserError as error:
            log.warning("measure: topics skipped: %s", error)
    return found
