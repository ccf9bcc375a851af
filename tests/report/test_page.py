import re
from pathlib import Path

from samples import sample_members, tar_bytes

from capmix import jobs

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></title><iframe src=javascript:alert(1)>",
    "‮gpj.exe {{ 7 * 7 }} {% raw %}",
    "& < > ' \"",
]


def test_the_page_is_one_file_and_texts_are_escaped(tmp_path: Path) -> None:
    members = [m for i, text in enumerate(HOSTILE) for m in sample_members(f"k{i}", i, text)]
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/00000.tar").write_bytes(tar_bytes(members))
    work = jobs.open_work(str(tmp_path / "pool"), str(tmp_path / "work"))
    jobs.caption(work, "mini")
    jobs.score(work)
    jobs.measure(work)
    jobs.mix(work, "raw-top+synthetic", {"fraction": 0.4})
    path, _ = jobs.report(work, str(tmp_path / "out/page.html"))
    page = Path(path).read_text("utf-8")
    assert "<script" not in page
    assert "<iframe" not in page
    assert not re.search(r"<[^>]*\sonerror=", page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in page
    assert page.count("data:image/webp;base64,") == len(HOSTILE)
    links = re.findall(r'(?:src|href)="(?!data:|#)([^"]+)"', page)
    assert links == []
    assert "Content-Security-Policy" in page
