"""The image formats that a pool may hold: their names, how their bytes begin, what decodes them."""

import importlib.util
from dataclasses import dataclass

BOX = 8  # bytes of the length and the name that a part of an ISO media file begins with
MAX_BRANDS = 256  # bytes of a file's brands
AVIF_BRANDS = {b"avif", b"avis"}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


@dataclass(frozen=True)
class ImageFormat:
    """`kind` is Pillow's word for it, `suffixes` the endings of its files, the usual one first.

    It is decoded by `package`, or by a part of Pillow, `feature`, which not every build has; with
    neither, by Pillow alone. `install` is the command that adds what is missing.
    """

    name: str
    kind: str
    suffixes: tuple[str, ...]
    starts: tuple[bytes, ...] = ()
    package: str = ""
    feature: str = ""
    install: str = ""

    @property
    def is_readable(self) -> bool:
        """Whether it can be decoded here."""
        if self.package:
            return importlib.util.find_spec(self.package) is not None
        if not self.feature:
            return True
        from PIL import features

        return bool(features.check(self.feature))


JPEG = ImageFormat("JPEG", "JPEG", ("jpg", "jpeg", "jfif"), (b"\xff\xd8\xff",))
PNG = ImageFormat("PNG", "PNG", ("png",), (b"\x89PNG",))
WEBP = ImageFormat("WebP", "WEBP", ("webp",), (b"RIFF",))
AVIF = ImageFormat(
    "AVIF", "AVIF", ("avif",), feature="avif", install="pip install --upgrade pillow"
)
BMP = ImageFormat("BMP", "BMP", ("bmp",), (b"BM",))
GIF = ImageFormat("GIF", "GIF", ("gif",), (b"GIF87a", b"GIF89a"))
HEIC = ImageFormat(
    "HEIC",
    "HEIF",
    ("heic", "heif", "hif"),
    package="pillow_heif",
    install="pip install 'capmix[heif]'",
)
JPEG_2000 = ImageFormat(
    "JPEG 2000",
    "JPEG2000",
    ("jp2", "j2k"),
    (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n"),
    feature="jpg_2000",
    install="pip install --upgrade pillow",
)
TIFF = ImageFormat("TIFF", "TIFF", ("tif", "tiff"), (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"))
FORMATS = (JPEG, PNG, WEBP, AVIF, BMP, GIF, HEIC, JPEG_2000, TIFF)


def format_of(data: bytes) -> ImageFormat | None:
    """The format of an image by its first bytes; None for what is none of FORMATS."""
    if data[4:BOX] == b"ftyp":
        return _format_of_brands(data)
    return next((one for one in FORMATS if data.startswith(one.starts)), None)


def _format_of_brands(data: bytes) -> ImageFormat | None:
    """Of an ISO media file. The brands that it agrees with tell AVIF where the first is a common
    one."""
    end = min(int.from_bytes(data[:4], "big"), MAX_BRANDS)
    brands = {data[at : at + 4] for at in range(BOX, end, 4)}
    if brands & AVIF_BRANDS:
        return AVIF
    return HEIC if brands & HEIF_BRANDS else None


def install_hint(suffix: str) -> str:
    """The command that adds the decoder of the images of a suffix (without dot); "" where there is
    nothing to add."""
    kind = next((one for one in FORMATS if suffix in one.suffixes), None)
    return "" if kind is None or kind.is_readable else kind.install
