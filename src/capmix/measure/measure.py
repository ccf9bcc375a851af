"""Measure a pool's texts by source: how varied they are, how well they fit, what they speak of."""

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
    """All measures, each part of which is kept below measures/ until what it is made from changes.

    `sources` have texts and `scored` of them scores by `scorer`. `text_encoder` is a scorer with a
    text tower; topics need one, and RefCLIPScore the very scorer that is measured. Returns
    `population` (population.py), `sampled` (sampled.py), and, None where not asked for or not
    possible, `references` and `coverage`.
    """
    if settings.references and not settings.references.startswith(SOURCE):
        load_references(settings.references)  # a mistake is told before the pass over the pool
    population = Population(store, pool, scorer, sources, scored, settings)
    found: dict[str, Any] = {"population": measure_population(population, engine)}
    digests = found["population"]["digests"]
    shards = [shard.name for shard in pool.shards]
    found["sampled"] = measure_sampled(store, digests, sources, shards, settings)
    if found["sampled"]["tagger"] is None:
        log.warning("measure: no nouns without a tagger: pip install 'capmix[measure]'")
    found["references"] = found["coverage"] = None
    if settings.references:
        same = text_encoder if text_encoder is not None and text_encoder.name == scorer else None
        found["references"] = measure_references(
            population, settings.references, settings.java, same
        )
    if settings.topics and text_encoder is None:
        log.info("measure: no topics without a text tower; name a scorer with --model")
    elif settings.topics and text_encoder is not None:
        try:
            found["coverage"] = measure_coverage(store, digests, sources, settings, text_encoder)
        except UserError as error:
            log.warning("measure: no topics: %s", error)
    return found
