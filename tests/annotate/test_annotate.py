"""Compare every method with a simple computation, pair by pair."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from samples import write_pool
from scipy.special import logsumexp

from capmix.annotate.cliploss import negative_clip_loss
from capmix.annotate.clusters import cluster
from capmix.annotate.normsim import norm_similarity
from capmix.annotate.semdedup import near_duplicates
from capmix.annotate.vectors import PoolVectors
from capmix.cli.main import main
from capmix.errors import UserError
from capmix.models.image_pass import unit
from capmix.workspace import open_workspace


def vectors(count: int, width: int = 16, seed: int = 0, groups: int = 0) -> PoolVectors:
    draw = np.random.default_rng(seed)
    found = draw.normal(size=(count, width))
    if groups:
        found = draw.normal(size=(groups, width))[draw.integers(0, groups, count)] * 4 + found * 0.3
    return PoolVectors(unit(found).astype(np.float16), [], [])


def test_samples_are_in_the_cluster_of_the_nearest_centroid_and_references_are_marked() -> None:
    pool, near = vectors(600, groups=6), vectors(600, groups=6).array[:3]
    columns = cluster(pool, 6, unit(near.astype(np.float32)), seed=0)
    numbers = columns["cluster"][0]
    assert set(numbers) <= set(range(6))
    marked = columns["near_reference"][0]
    assert (marked == np.isin(numbers, numbers[:3])).all()  # the references are samples 0 to 2
    again = cluster(pool, 6, None, seed=0)
    assert (again["cluster"][0] == numbers).all()
    whole = pool.take(np.arange(600))
    centroids = np.stack([unit(whole[numbers == i].sum(axis=0)[None])[0] for i in range(6)])
    products = whole @ centroids.T
    assert (products.argmax(axis=1) == numbers).mean() > 0.99
    assert np.allclose(columns["similarity"][0], products.max(axis=1), atol=1e-3)


def test_more_clusters_than_images_is_a_one_line_error() -> None:
    with pytest.raises(UserError, match="there are only 5 images"):
        cluster(vectors(5), 6, None, seed=0)


@pytest.mark.parametrize("block", [7, 4_096])
def test_semdedup_equals_the_papers_definition(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr("capmix.annotate.semdedup.BLOCK", block)
    pool = vectors(80, width=4, groups=20)
    draw = np.random.default_rng(1)
    clusters, similarity = draw.integers(0, 5, 80), draw.random(80).astype(np.float32)
    columns = near_duplicates(pool, clusters, similarity, epsilon=0.02)
    whole = pool.take(np.arange(80))
    expected = np.full(80, -1.0)
    for i in range(80):
        for j in range(80):
            earlier = (similarity[j], j) < (similarity[i], i)
            if clusters[i] == clusters[j] and earlier:
                expected[i] = max(expected[i], float(whole[i] @ whole[j]))
    assert np.allclose(columns["closest"][0], expected, atol=1e-5)
    clear = np.abs(expected - 0.98) > 1e-4
    assert (columns["repeats"][0] == (expected > 0.98))[clear].all()
    assert 0 < columns["repeats"][0].sum() < 80


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_normsim_is_the_norm_of_all_similarities(norm: str) -> None:
    pool, reference = vectors(50), vectors(30, seed=1).take(np.arange(30))
    found = norm_similarity(pool, reference, norm)["value"][0]
    products = pool.take(np.arange(50)).astype(np.float64) @ reference.T.astype(np.float64)
    expected = np.linalg.norm(products, np.inf if norm == "inf" else 2, axis=1)
    if norm == "inf":  # the largest similarity (may be negative), not the largest absolute value
        expected = products.max(axis=1)
    assert np.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("rounds", [1, 3])
def test_cliploss_equals_the_papers_formula(rounds: int) -> None:
    images, texts = vectors(40), vectors(40, seed=1)
    found = negative_clip_loss(images, texts, temperature=0.07, batch=20, rounds=rounds, seed=5)
    x, y = (v.take(np.arange(40)).astype(np.float64) for v in (images, texts))
    expected = np.zeros(40)
    for number in range(rounds):
        order = np.random.default_rng([5, number]).permutation(40)
        for members in (order[:20], order[20:]):
            scores = x[members] @ y[members].T / 0.07
            both = logsumexp(scores, axis=1) + logsumexp(scores, axis=0)
            expected[members] += np.diag(scores) * 0.07 - 0.07 / 2 * both
    assert np.allclose(found, expected / rounds, atol=1e-5)


def test_all_methods_and_their_recipes_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pool(tmp_path / "pool", shards=2, samples=6)
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "reference.npy", np.random.default_rng(0).normal(size=(4, 3)))
    for command in (
        "score pool --work w --model mini",
        "annotate pool --work w --method clusters --clusters 3 --reference w",
        "annotate pool --work w --method semdedup --epsilon 0.5",
        "annotate pool --work w --method normsim --reference w",
        "annotate pool --work w --method cliploss --rounds 2 --batch 8 --model mini",
        "mix pool --work w --recipe raw-top-image-based --fraction 0.5",
        "mix pool --work w --recipe semdedup",
        "mix pool --work w --recipe cliploss-normsim --fraction 0.5 --set normsim_at_least=0.5",
        "mix pool --work w --recipe raw-weighted",
    ):
        assert main(command.split()) == 0, command
    assert (
        main(
            [
                "annotate",
                "pool",
                "--work",
                "w",
                "--method",
                "normsim",
                "--reference",
                "reference.npy",
            ]
        )
        == 2
    )
    assert (
        main(["annotate", "pool", "--work", "w", "--method", "normsim", "--reference", "no.npy"])
        == 2
    )
    assert main(["annotate", "pool", "--work", "w", "--method", "semdedup", "--of", "other"]) == 2
    work = open_workspace("pool", "w")
    # Every image is in the reference set, so its largest similarity is to itself.
    table = work.store.read_table("columns/normsim/00000.parquet")
    assert np.allclose(table["value"].to_numpy(), 1, atol=1e-3)
    near = work.store.read_table("columns/clusters/00001.parquet")["near_reference"].to_pylist()
    assert near == [True] * 6
    with pytest.raises(UserError, match="expected --reference"):
        work.annotate(method="normsim")
    # Embeddings of masked images are not the default, but can be named.
    (name,) = work.store.folders("embeddings")
    for top in ("w/embeddings", "w/.markers/embeddings"):
        shutil.copytree(f"{top}/{name}", f"{top}/{name}-masked")
    work.annotate(method="clusters", clusters=3, name="of_whole")
    work.annotate(method="clusters", clusters=3, name="of_masked", embeddings=f"{name}-masked")
    for column, embeddings in (("of_whole", name), ("of_masked", f"{name}-masked")):
        marker = work.store.read_marker(f"columns/{column}/00000")
        assert marker is not None
        assert marker.config["embeddings"] == embeddings
    # Annotations are recomputed only if their inputs have changed.
    columns = [tmp_path / f"w/columns/{name}/00000.parquet" for name in ("clusters", "semdedup")]
    before = [path.stat().st_mtime_ns for path in columns]
    work.annotate(method="clusters", clusters=3, reference="w")
    work.annotate(method="semdedup", epsilon=0.5)
    assert [path.stat().st_mtime_ns for path in columns] == before
    work.annotate(method="clusters", clusters=2)
    work.annotate(method="semdedup", epsilon=0.5)
    after = [path.stat().st_mtime_ns for path in columns]
    assert all(a > b for a, b in zip(after, before, strict=True))
    # Parts from two runs are fixed by the command in the error message.
    part = "columns/clusters/00000"
    marker = work.store.read_marker(part)
    assert marker is not None
    work.store.write_marker(part, replace(marker, config=marker.config | {"values": "other"}))
    with pytest.raises(UserError, match="parts from two runs"):
        work.mix("raw", where="clusters_cluster = 0", out="some")
    work.annotate(method="clusters", clusters=2)
    assert work.mix("raw", where="clusters_cluster >= 0", out="some").summary.kept == 12
