"""Write texts as they occur in web pools: in many languages, with entities and encoding errors."""

import unicodedata
from collections.abc import Callable, Iterator
from random import Random


def _list(words: str) -> list[str]:
    return words.split()


CAPTION_WORDS = _list(
    "a the of on in with and man woman dog cat red small old wooden table street beach photo image "
    "background white black two people standing sitting next to view city night house car tree it "
    "bottle glass holding wearing dress shirt isolated illustration vector stock sunset mountain"
)
SYLLABLES = _list("ka lo mi tre son vel dar ing ter nov pix ful zen ast or ba qu ery lam shi ph tz")
FOREIGN = _list(
    "café à Paris l’été Übergröße straße naïve señorita piñata coração maçã łódź Škoda İstanbul ıs "
    "красная машина улица фото Київ Ελλάδα φωτογραφία ποίησις بيت صورة للبيع תמונה של बिल्ली तस्वीर "
    "ภาพถ่าย 東京タワー 夜景 写真 包邮 新款 ﾊﾝｶｸ ＬＯＵＤ 한국어 사진 "
    "ﬁne oﬃce ǆungla Ⅷ ½ ² m³ ① ſtrange it’ſ"
)
EMOJI = _list("🐶 ❤️ 👩‍👩‍👧‍👦 👍🏽 🇩🇪 1️⃣ 🏴\U000e0067\U000e0062\U000e007f ✔ ★ ™ →")
ENTITIES = _list(
    "&amp; &amp;amp; &lt;b&gt; &quot;x&quot; &#39; &#x2019; &eacute; &EACUTE; &nbsp; &hellip; "
    "&copy &notit; &ampamp; &#0; &#7; &#27; &#127; &#133; &#150; &#xD800; &#x110000; &#1; &#12; "
    "&#x85; &amp;#39; &AMP; &bogus; & &; &# &#x; &zwj; &shy; R&D AT&T ?a=1&b=2&copy=3 &NewLine; "
    "&ThinSpace;"
)
PUNCTUATION = _list(
    '| - – — , . ... … ! ?? :) () [] {} " “x” ‘x’ «x» / \\ + * # @ _ __ ~ ^ ` $5 €5 100%'
)
CONTRACTIONS = _list(
    "it's don't we're I've I'm you'll he'd IT'S DON'T 's ''s 'tis rock'n'roll ’s x'LL"
)
SPECIAL = _list(
    "<start_of_text> <end_of_text> <START_OF_TEXT> <<start_of_text>> a<end_of_text>b <end_of_text "
    "<|startoftext|> <|endoftext|> <ſtart_of_text> start_of_text </w> a</w> <end_of_text>'s"
)
CONTROL = [chr(i) for i in range(32)] + list(
    "\x7f\x80\x85\x96\xa0\xad\u200b\u200d\u2028\ufeff\ufffc"
)
CONTROL += ["\x1b[36;44m", "\r\n", "\ud800", "\udc00", "\ud83d\udc36", "\udcff"]
SPACES = [" "] * 12 + ["  ", "\t", "\n", "", "\u3000"]


def web_texts(count: int, seed: int) -> Iterator[str]:
    """Yield `count` texts, among them empty ones, and long ones of up to 20,000 characters."""
    random = Random(seed)
    kinds: list[Callable[[Random], str]] = [
        *(_sentence,) * 6,
        *(_alt_text,) * 6,
        *(_mixture,) * 6,
        _mojibake,
        _mojibake,
        _decomposed,
        _any_characters,
        _any_characters,
        _near,
        _extreme,
    ]
    for _ in range(count):
        yield random.choice(kinds)(random)


def captions(count: int, seed: int) -> list[str]:
    """Return texts of 6 to 14 frequent words in lower case."""
    random = Random(seed)
    return [_caption(random) for _ in range(count)]


def alt_texts(count: int, seed: int) -> list[str]:
    """Return English alt-texts, in which a quarter of the words is in no vocabulary."""
    random = Random(seed)
    return [_alt_text(random) for _ in range(count)]


def _caption(random: Random) -> str:
    return " ".join(random.choices(CAPTION_WORDS, k=random.randint(6, 14)))


def _alt_text(random: Random) -> str:
    return " ".join(_alt_word(random) for _ in range(random.randint(3, 25)))


def _sentence(random: Random) -> str:
    text = _caption(random)
    return random.choice([text, text.capitalize() + ".", text.upper(), f" {text}\n"])


def _alt_word(random: Random) -> str:
    kind = random.random()
    if kind < 0.6:
        return random.choice(CAPTION_WORDS)
    if kind < 0.85:
        return _unseen(random).title()
    if kind < 0.92:
        return str(random.randint(0, 99_999))
    return random.choice([_url(random), "|", "-", "(2019)", "it's", f"{_unseen(random)}.jpg"])


def _unseen(random: Random) -> str:
    return "".join(random.choices(SYLLABLES, k=random.randint(2, 5)))


def _url(random: Random) -> str:
    number = random.randint(0, 10**6)
    return (
        f"https://www.{_unseen(random)}.com/{_unseen(random)}_{number}x{number}.jpg?id={number:x}"
    )


def _any_word(random: Random) -> str:
    kinds = (CAPTION_WORDS, FOREIGN, EMOJI, ENTITIES, PUNCTUATION, CONTRACTIONS, SPECIAL, CONTROL)
    words = random.choices(kinds, weights=(6, 5, 2, 3, 3, 2, 1, 1))[0]
    return random.choice(words) if random.random() < 0.85 else _alt_word(random)


def _mixture(random: Random) -> str:
    words = (_any_word(random) for _ in range(random.randint(1, 20)))
    return "".join(word + random.choice(SPACES) for word in words)


def _mojibake(random: Random) -> str:
    """Return a text that was decoded with the wrong encoding, once or twice."""
    text = " ".join(random.choices([*FOREIGN, *EMOJI, *CAPTION_WORDS], k=random.randint(1, 12)))
    for _ in range(random.randint(1, 2)):
        encoding = random.choice(["latin-1", "cp1252", "cp1250", "cp1251", "mac_roman", "cp437"])
        text = text.encode("utf-8", "replace").decode(
            encoding, random.choice(["ignore", "replace"])
        )
    return text


def _decomposed(random: Random) -> str:
    form = random.choice(["NFD", "NFKD", "NFC"])
    text = " ".join(random.choices(FOREIGN, k=random.randint(1, 12)))
    marks = "".join(chr(random.randint(0x300, 0x36F)) for _ in range(random.randint(0, 4)))
    return unicodedata.normalize(form, text) + marks  # type: ignore[arg-type]


def _any_characters(random: Random) -> str:
    """Return characters of all Unicode categories, unassigned ones included."""
    limit = random.choice([0x80, 0x250, 0x3000, 0x10000, 0x20000, 0x110000])
    return "".join(chr(random.randrange(limit)) for _ in range(random.randint(1, 30)))


def _near(random: Random) -> str:
    """Return neighbours of one character, which are often of one script."""
    first = random.randrange(0x1FFF0)
    letters = "".join(chr(first + random.randrange(16)) for _ in range(random.randint(1, 12)))
    return f"{random.choice(CAPTION_WORDS)} {letters}{random.choice(CONTRACTIONS)}"


def _extreme(random: Random) -> str:
    kind = random.random()
    if kind < 0.3:
        return random.choice(["", " ", "\n", "\u3000", "\x00", "&nbsp;", "&", ".", "é", "\ud83d"])
    if kind < 0.6:
        return " ".join(_any_word(random) for _ in range(random.randint(60, 90)))
    if kind < 0.9:
        return random.choice(["a", "!", "é", "ab", "日", "'s", "🐶"]) * random.randint(1, 300)
    if kind < 0.98:
        return " ".join(_alt_word(random) for _ in range(random.randint(70, 80)))
    return " ".join(_any_word(random) for _ in range(random.randint(500, 3000)))[:20_000]
