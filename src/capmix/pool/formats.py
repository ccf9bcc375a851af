"""Supported image formats: names, file signatures and the packages that decode them."""

import importlib.util
from dataclasses import dataclass

BOX = 8  # bytes in the header (length and name) of a box in an ISO media file
MAX_BRANDS = 256  # bytes of the file type box in which brands are looked up
AVIF_BRANDS = {b"avif", b"avis"}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


@dataclass(frozen=True)
class ImageFormat:
    """An image format and its decoder.

    `kind` is Pillow's name for the format. `suffixes` are its file suffixes, the usual one first.
    `starts` are the byte sequences that its files begin with. The decoder is `package`, or a
    `feature` of Pillow that not every build has, or plain Pillow if both are empty. `install` is
    the command that installs the decoder.
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
        """Whether the decoder is installed."""
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
    """Return the format of an image, detected by its first bytes; None if it is not supported."""
    if data[4:BOX] == b"ftyp":
        return _format_of_brands(data)
    return next((one for one in FORMATS if data.startswith(one.starts)), None)


def _format_of_brands(data: bytes) -> ImageFormat | None:
    """Return the format of an ISO media file.

    All compatible brands are checked, because the major brand of an AVIF file may be a generic one.
    """
    end = min(int.from_bytes(data[:4], "big"), MAX_BRANDS)
    brands = {data[at : at + 4] for at in range(BOX, end, 4)}
    if brands & AVIF_BRANDS:
        return AVIF
    return HEIC if brands & HEIF_BRANDS else None


def install_hint(suffix: str) -> str:
    """Return the command that installs the decoder for a suffix (without the dot).

    Returns "" if the decoder is installed or the suffix is not an image's.
    """
    kind = next((one for one in FORMATS if suffix in one.suffixes), None)
    return "" if kind is None or kind.is_readable else kind.install
