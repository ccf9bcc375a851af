"""For any pool, every stage accounts for every row, and bad samples do not affect others."""

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import BAD, sample_members, tar_bytes

from capmix.mini.image_tower import LiteTower
from capmix.workspace import open_workspace

UNREADABLE = {
    "html": b"<html>not found</html>",
    "empty": b"",
    "half": sample_members("x", 5)[0][1][:300],
}
KINDS = ["good", *UNREADABLE, *(kind for kind in BAD if not kind.startswith("duplicate"))]


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=12), st.booleans())
def test_rows_in_are_ok_dropped_or_failed(
    tower: LiteTower, kinds: list[str], truncated: bool
) -> None:
    members = sample_members("first", 10**6)
    for number, kind in enumerate(kinds):
        sample = sample_members(f"k{number}", number)
        if kind in UNREADABLE:
            sample[0] = (sample[0][0], UNREADABLE[kind])
        elif kind != "good":
            sample = [(f"k{number}.{n.split('.', 1)[1]}", data) for n, data in BAD[kind]]
        members += sample
    data = tar_bytes(members)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pool").mkdir()
        cut = len(data) - 12_000 if truncated else len(data)
        (Path(folder) / "pool/00000.tar").write_bytes(data[:cut])
        work = open_workspace(f"{folder}/pool", f"{folder}/work", max_failures=1.0)
        work.__dict__["mini_encoder"] = tower  # loaded once for all examples
        work.caption("mini", model="mini")
        work.score(model="mini")
        totals = set()
        for part in work.store.parts(""):
            marker = work.store.read_marker(part)
            if marker is not None:
                assert marker.counts.total == marker.rows_in
                totals.add(marker.rows_in)
                if part.startswith("fields/"):  # has the rows of the index
                    continue
                rows = work.store.read_table(f"{part}.parquet").to_pylist()
                statuses = [row["status"] for row in rows]
                assert statuses.count("ok") == marker.counts.ok
                assert statuses.count("dropped") == marker.counts.dropped.total()
                assert statuses.count("failed") == marker.counts.failed.total()
        assert len(totals) == 1
        if not truncated:
            marker = work.store.read_marker("captions/mini/00000")
            assert marker is not None
            assert marker.counts.ok == 1 + kinds.count("good")
