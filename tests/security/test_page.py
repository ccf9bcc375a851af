"""Each line of docs/security.md names an existing test."""

from evidence import HEADS, ROOT, faults_of, tables

TEXT = (ROOT / "docs/security.md").read_text("utf-8")


def test_each_threat_names_an_existing_test() -> None:
    assert faults_of(TEXT) == []
    assert all(head[-1] in HEADS for head, _ in tables(TEXT))
    assert sum(len(rows) for _, rows in tables(TEXT)) > 60
