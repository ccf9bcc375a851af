"""The finder of calls in shell scripts, and the parser that checks them."""

from pathlib import Path

import pytest
from blocks import read_page
from command_line import check_call
from cyclopts import CycloptsError
from shell import capmix_calls

from capmix.errors import UserError

CALLS = {
    "capmix models  # a list": "0 models",
    "capmix a --x 'b # c' \\\n  --y \"d e\"\ncapmix f": "0 a --x b_#_c --y d_e; 2 f",
    "cd x && CAPMIX_WORK=w capmix status | head -1 > out.txt": "0 status",
    "export W=work\ncapmix a $W ${N:-3} $M": "1 a work 3 1",
    "for x in 1 2; do\n  capmix a --s $x\ndone": "1 a --s 1; 1 a --s 2",
    "torchrun --nproc-per-node 8 -m capmix train --out r 2>&1 &": "0 train --out r",
    "srun -n 64 capmix a": "0 a",
    "pip install 'capmix[mini]'\ncd capmix\n# capmix b\necho \"it's capmix\"": "",
    "cat > f <<'EOF'\ncapmix a\nEOF\ncapmix b $(capmix c)": "3 c; 3 b 1",
}


@pytest.mark.parametrize("script", CALLS)
def test_calls_are_found(script: str) -> None:
    """Written with `_` for a space within an argument."""
    found = [
        " ".join([str(line), *(one.replace(" ", "_") for one in arguments)])
        for line, arguments in capmix_calls(script)
    ]
    assert "; ".join(found) == CALLS[script]


@pytest.mark.parametrize(
    "call",
    [
        "caption ./shards --work W --source blip2 --model blip2 --limit 100",
        "--quiet status --work W",
        "caption --help",
        "--version",
        "import scores metadata/a.parquet --source raw --work W",
    ],
)
def test_good_calls_pass(call: str) -> None:
    check_call(call.split())


@pytest.mark.parametrize(
    "call",
    [
        "captain ./shards",
        "caption ./shards --work W",  # without --source
        "caption ./shards --source a --tempreature 2",
        "caption ./shards --source a --temperature hot",
        "caption ./shards --source a --top-k 0",
        "export --subset a --format zip",
        "mix --recipe raw ...",
    ],
)
def test_bad_calls_fail(call: str) -> None:
    with pytest.raises((CycloptsError, UserError)):
        check_call(call.split())


def test_the_rules_for_blocks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\n- an item\n\n    its second paragraph\n\n```{toctree}\nx\n```\n\n"
        "<!-- not run: needs a GPU -->\n```sh\ncapmix models\n```\n\n"
        "<!-- exits 2 -->\n```sh\nfalse\n```\n\n```yaml\n# a/b.yaml\nx: 1\n```\n\n"
        "```python\n# use.py\n```\n\n```python\nx = 1\n```\n"
    )
    found = read_page(page)
    assert found.faults == []
    about = [(b.line, b.language, b.reason, b.code, b.file, b.is_run) for b in found.blocks]
    assert about == [
        (13, "sh", "needs a GPU", 0, None, False),
        (18, "sh", None, 2, None, True),
        (22, "yaml", None, 0, "a/b.yaml", False),
        (27, "python", None, 0, "use.py", False),
        (31, "python", None, 0, None, True),
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("text\n\n    capmix models\n", 3),
        ("```\ncapmix models\n```\n", 1),
        ("```py\nx\n```\n", 1),
        ("```yaml\nx: 1\n```\n", 1),
        ("```sh\nx\n", 1),
        ("<!-- not run: no time -->\n```sh\nx\n```\n", 1),
        ("<!-- not run: needs S3 -->\n\n```sh\nx\n```\n", 1),
        ("<!-- exits two -->\n```sh\nx\n```\n", 1),
    ],
)
def test_what_breaks_the_rules_for_blocks(tmp_path: Path, text: str, line: int) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    faults = read_page(page).faults
    assert [fault.partition(":")[0] for fault in faults] == [str(line)]
