"""E-mail addresses and phone numbers are found; dates, prices, sizes and product codes are not."""

import time

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts import HandMade, Made, fresh_folder

from capmix.caption.personal import PHONE, emails, has_email, has_phone, phones
from capmix.mix.recipe import Clause, Recipe

PHONES = """
+44 20 7946 0958|+1 (212) 555-0123|+49 (0)30 1234567|+33 1 23 45 67 89|+390612345678|
0044 20 7946 0958|+91-98765-43210|+86 138 0013 8000|(212) 555-0123|212-555-0123|1-800-555-0199|
415.555.2671|Tel: 1234567|phone 555 0123 45|01 23 45 67 89|020 7946 0958|030-12345678|
0171/1234567|(030) 1234567|tel.:06-12345678|WhatsApp +62 812-3456-7890|Call us: 01632 960123|
phone: +7 (495) 123-45-67|\u96fb\u8a71 03-1234-5678|06 12 34 56 78|0161 496 0000|(02) 9876 5432|
+1\u2011212\u2011555\u20110123|+44\u00a020\u00a07946\u00a00958|fax 0221-1234567
""".replace("\n", "").split("|")
NO_PHONES = """
12/05/2021|2021-05-12 10:30:45|01.02.2023|01-02-2023 12|01.02.2023-05.02.2023|05 10 2020|
2020/01/02 03:04:05|2019-2020-2021|2012-2013|00:12:34:56|ISBN 978-3-16-148410-0|
ISBN 0-306-40615-2|ISBN 0306406152|EAN 4006381333931|SKU 1234567890|Part 123-456-7890123|
No. 0012345678|1920x1080|1920 x 1080 px|photo 4032 3024|IMG_20210512_103045|$1,234,567.00|
$212 555 0123|1 234 567 890|1 000 000 000|20 000 000 000|+100 200|50+ 100 200 300 400|
192.168.100.200|10.0.0.1|v1.02.03.04.05.06|3.14159265358979|0.125 0.250 0.375|
GPS 40.712776, -74.005974|iPhone 12 128 256 512|Mercedes 300 SL 1955 1956|lot of 100 200 300 400|
Nikon D850 24-70 2.8|card 4111 1111 1111 1111|score 210-310-4000000|page 02-03|vol. 02 03 04|
01/02/03 04/05/06|http://a.b/0212-555-0123/img|a text without digits|
""".replace("\n", "").split("|")
EMAILS = """
a@b.co|Contact: john.doe+x@mail.example.co.uk!|info@\u4f8b\u3048.jp|<me@x-y.org>|mailto:A@B.COM|
user_@sub.domain.museum|j\u00fcrgen@m\u00fcller.de|me@example.com.
""".replace("\n", "").split("|")
NO_EMAILS = """
@handle|icon@2x.png|logo@3x.JPG|5 @ 10.00|a@b|a@.com|me @ home.now|x@1.5|a@b..com|foo@bar.c|@|a.b.c|
""".replace("\n", "").split("|")
HOSTILE = [
    "1" * 200_000, "1-" * 100_000, "+1 " * 70_000, "tel " * 50_000, "call us " * 25_000,
    "01 " * 70_000, "012345 " * 30_000, "(0)" * 70_000, "+1(0)" * 40_000, "00" * 100_000,
    "a@" * 100_000, "a@" + "a." * 100_000, "a@a.a.a.a.a.a.a.a.a.a" * 10_000,
    ("a@" + "a" * 63) * 3_000, "0044 " * 40_000, "(212) " * 33_000, "tel 0-" * 33_000,
]  # fmt: skip


@pytest.mark.parametrize("text", PHONES)
def test_a_phone_number_is_found(text: str) -> None:
    assert has_phone(text)
    assert has_phone(f"Flat for rent, {text}, two rooms")


@pytest.mark.parametrize("text", NO_PHONES)
def test_other_numbers_are_not_phone_numbers(text: str) -> None:
    assert not has_phone(text)
    assert not has_phone(f"a red car, {text}, 3 of 10")


@pytest.mark.parametrize("text", EMAILS)
def test_an_email_address_is_found(text: str) -> None:
    assert has_email(text)


@pytest.mark.parametrize("text", NO_EMAILS)
def test_other_uses_of_the_at_sign_are_not_email_addresses(text: str) -> None:
    assert not has_email(text)


@given(st.lists(st.one_of(st.none(), st.sampled_from(PHONES + EMAILS), st.text("+0(1)23- .@ab"))))
def test_a_column_has_the_answers_of_its_texts(texts: list[str | None]) -> None:
    column = pa.chunked_array([pa.array(texts, pa.string())])
    assert emails(column).to_pylist() == [one if one is None else has_email(one) for one in texts]
    assert phones(column).to_pylist() == [one if one is None else has_phone(one) for one in texts]


@given(st.one_of(st.sampled_from(PHONES), st.text("+0(1)23- .-/tel", max_size=30)))
def test_every_phone_number_has_seven_digits_in_a_row(text: str) -> None:
    assert has_phone(text) == bool(PHONE.search(text))


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:12])
def test_the_time_grows_with_the_length_of_the_text_only(text: str) -> None:
    """A pattern that backtracks would take hours for these."""
    started = time.process_time()
    has_email(text), has_phone(text)
    phones(pa.array([text]))
    assert time.process_time() - started < 2


def test_recipes_leave_out_texts_with_personal_data() -> None:
    texts = ["a red car", PHONES[0], EMAILS[0], "12/05/2021", None, f"{PHONES[1]} {EMAILS[1]}"]
    samples = [Made(f"{n:032x}", raw=text) for n, text in enumerate(texts)]
    here = HandMade(fresh_folder(), {"00000": samples[:2], "00001": samples[2:]})
    where = "not has_email(raw_text) and not has_phone(raw_text)"
    clause = Clause(source="raw", where=where)
    here.mix(Recipe(name="r", about="r", clauses=[clause]), texts=True)
    assert [row["uid"] for row in here.rows()] == [samples[0].uid, samples[3].uid]
