"""Each claim of docs/verification.md names an existing test or benchmark."""

import pytest
from evidence import HEADS, ROOT, faults_of, tables

TEXT = (ROOT / "docs/verification.md").read_text("utf-8")
WITHOUT_TESTS = "\n## Not verified\n"
HEADER = "| claim | how it was checked | test or benchmark |\n|--|--|--|\n"


def test_each_claim_names_an_existing_test_or_benchmark() -> None:
    assert faults_of(TEXT) == []
    claims, _, rest = TEXT.partition(WITHOUT_TESTS)
    found = list(tables(claims))
    assert all(head == ["claim", "how it was checked", HEADS[1]] for head, _ in found)
    assert sum(len(rows) for _, rows in found) > 100
    assert not any(head[-1] in HEADS for head, _ in tables(rest))


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("| a | b | `tests/test_verification.py::test_gone` |", "test_gone does not exist"),
        ("| a | b | `tests/test_gone.py::test_x` |", "tests/test_gone.py::test_x does not exist"),
        ("| a | b | `benchmarks/gone.py` |", "benchmarks/gone.py does not exist"),
        ("| a | b | `tests/test_verification.py` |", "line 3: a: names no test or benchmark"),
        ("| a | b | |", "line 3: a: names no test or benchmark"),
        ("| a | `benchmarks/mix.py` |", "line 3: 2 cells under 3 columns"),
        ("| a | b | tests/test_x.py::test_x, `benchmarks/mix.py` |", "a test is not written as"),
    ],
)
def test_a_row_without_evidence_is_found(row: str, fault: str) -> None:
    (found,) = faults_of(f"{HEADER}{row}\n")
    assert fault in found


def test_evidence_is_found() -> None:
    this = "`tests/test_verification.py::test_evidence_is_found`"
    assert faults_of(f"{HEADER}| a \\| b | c | {this}, `benchmarks/mix.py` |\n") == []
