import numpy as np

from capmix.probe.evaluate import ProbeResult
from capmix.report.compare import compare, verdict


def runs(name: str, rate: float, seeds: int = 3) -> list[ProbeResult]:
    found = []
    for seed in range(seeds):
        random = np.random.default_rng([seed, int(1000 * rate)])
        hits = {
            "classes/acc1": random.random(300) < rate,
            "pairs/text_retrieval_recall@5": random.random(300) < rate,
            "pairs/image_retrieval_recall@5": random.random(300) < rate,
        }
        metrics = {"classes": {"acc1": float(hits["classes/acc1"].mean())}}
        found.append(ProbeResult(f"results/{name}/seed{seed}", metrics, hits))
    return found


def test_average_deviation_and_interval() -> None:
    results = {"raw": runs("raw", 0.2), "better": runs("better", 0.4), "same": runs("same", 0.2)}
    raw, better, same = compare(results, "raw")
    per_seed = [
        100
        * (
            r.hits["classes/acc1"].mean()
            + (
                r.hits["pairs/text_retrieval_recall@5"].mean()
                + r.hits["pairs/image_retrieval_recall@5"].mean()
            )
            / 2
        )
        / 2
        for r in results["raw"]
    ]
    assert np.isclose(raw.average.mean, np.mean(per_seed))
    assert np.isclose(raw.average.deviation, np.std(per_seed, ddof=1))
    assert raw.average.low < raw.average.mean < raw.average.high
    assert raw.against_baseline is None
    assert better.against_baseline is not None
    assert better.against_baseline.low > 0
    assert same.against_baseline is not None
    assert same.against_baseline.low <= 0 <= same.against_baseline.high


def test_intervals_of_averages_are_percentages() -> None:
    results = {"worst": runs("worst", 0.01), "best": runs("best", 0.99)}
    results["best"][0].hits["classes/acc1"][:] = 0
    worst, best = compare(results, "worst")
    assert worst.average.low == 0
    assert best.average.high == 100


def test_a_retrieval_set_may_have_several_texts_per_image() -> None:
    """As Flickr30k and COCO, whose recalls count 1,000 images and 5,000 texts."""
    results = {"raw": runs("raw", 0.2), "better": runs("better", 0.4)}
    for name, rate in (("raw", 0.2), ("better", 0.4)):
        for seed, run in enumerate(results[name]):
            random = np.random.default_rng([seed, int(1000 * rate), 1])
            run.hits["pairs/image_retrieval_recall@5"] = random.random(1500) < rate
    raw, better = compare(results, "raw")
    assert raw.average.low < raw.average.mean < raw.average.high
    assert better.against_baseline is not None
    assert better.against_baseline.low > 0


def test_the_verdict_reports_an_order_that_does_not_hold() -> None:
    rows = compare({"raw": runs("raw", 0.3), "top": runs("top", 0.1)}, "raw")
    lines = verdict(rows, ["raw", "top"])
    assert "worse" in lines[0]
    assert lines[-1].endswith("does not hold for these means.")
