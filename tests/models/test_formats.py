"""Formats other than JPEG, PNG and WebP: their pixels, and decompression bombs."""

import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_formats import KINDS, encoded, hollow_jp2, picture, tiled_tiff
from PIL import Image, ImageCms
from samples import tar_bytes

from capmix.models.images import BadImageError, decode_as_stored, decode_image, read_header
from capmix.models.index import index_stages
from capmix.pool import Sample, open_pool
from capmix.pool.formats import FORMATS, format_of
from capmix.report.examples import thumbnails
from capmix.workspace import open_workspace

LOSS = {"jpg": 4, "webp": 4, "avif": 4, "heic": 6, "gif": 6}  # mean error, in levels of 0 to 255


@pytest.mark.parametrize("suffix", KINDS)
def test_every_format_is_decoded_to_its_pixels(suffix: str) -> None:
    data = encoded(picture(), suffix)
    kind = format_of(data)
    assert kind is not None
    assert suffix in kind.suffixes
    assert read_header(data) == (KINDS[suffix], 40, 30)
    for decode in (decode_image, decode_as_stored):
        found = decode(data)
        assert (found.mode, found.size) == ("RGB", (40, 30))
        difference = np.abs(np.asarray(found, float) - np.asarray(picture(), float)).mean()
        assert difference <= LOSS.get(suffix, 0)


@pytest.mark.parametrize("suffix", ["avif", "heic", "jp2", "tif"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_images_are_put_on_white(suffix: str, mode: str) -> None:
    clear = encoded(Image.new(mode, (8, 8)), suffix)
    assert min(decode_image(clear).getpixel((4, 4))) > 250


def test_cmyk_and_lab_are_converted_to_rgb() -> None:
    cmyk = encoded(Image.new("CMYK", (8, 4), (0, 255, 255, 0)), "tif")
    assert decode_image(cmyk).getpixel((2, 2)) == (255, 0, 0)
    profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    change = ImageCms.buildTransform(*profiles, "RGB", "LAB")
    lab = encoded(ImageCms.applyTransform(Image.new("RGB", (8, 4), (250, 0, 0)), change), "tif")
    assert decode_image(lab).getpixel((2, 2))[0] > 240


@pytest.mark.parametrize("suffix", ["jp2", "tif", "heic"])
def test_the_high_byte_of_16_bit_grey_is_kept(suffix: str) -> None:
    grey = Image.fromarray(np.full((16, 16), 0x8000, np.uint16))
    assert decode_image(encoded(grey, suffix)).getpixel((8, 8)) == (128, 128, 128)


@pytest.mark.parametrize(("kind", "low", "high"), [("int32", -70_000, 9_000), ("float32", 0, 1e-3)])
def test_grey_of_32_bits_goes_from_its_smallest_value_to_its_largest(
    kind: str, low: float, high: float
) -> None:
    values = np.linspace(low, high, 256).reshape(16, 16).astype(kind)
    found = np.asarray(decode_image(encoded(Image.fromarray(values), "tif")))
    assert np.array_equal(found[..., 0].ravel(), np.sort(found[..., 0].ravel()))
    assert (found.min(), found.max()) == (0, 255)
    flat = encoded(Image.fromarray(np.full((4, 4), np.nan, "float32")), "tif")
    assert decode_image(flat).size == (4, 4)


@pytest.mark.parametrize("suffix", ["avif", "tif", "heic"])
def test_orientation_is_applied(suffix: str) -> None:
    options = {"tiffinfo": {0x0112: 6}} if suffix == "tif" else {"exif": exif_of(6).tobytes()}
    assert decode_image(encoded(picture(), suffix, **options)).size == (30, 40)


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def gif_of_screen(side: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", side, side) + encoded(picture(), "gif")[10:]


def bmp_of(width: int, height: int) -> bytes:
    data = encoded(picture(), "bmp")
    return data[:18] + struct.pack("<ii", width, height) + data[26:]


def with_size(suffix: str, side: int, declared: int) -> bytes:
    """Encode a square image whose header declares a side of `declared` pixels."""
    data = encoded(Image.new("RGB", (side, side)), suffix)
    sizes = struct.pack(">II", side, side)
    assert sizes in data
    return data.replace(sizes, struct.pack(">II", declared, declared), 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gif", "exceeds limit|exceeds the limit"),
        ("bmp", "13000 x 13000 pixels"),
        ("avif", "13000 x 13000 pixels"),
        ("heic", "13000 x 13000"),
        ("tif", "13000 x 13000 pixels"),
        ("jp2", "13000 x 13000 pixels"),
        ("tile", "a tile of 40000 x 40000 pixels"),
        ("blocks", "in about 2,255,298 blocks"),
        ("precincts", "in about 35,919,645 blocks"),
        ("components", "10000 x 10000 pixels with 4 components"),
    ],
)
def test_a_bomb_of_every_format_is_refused_by_its_header(name: str, message: str) -> None:
    data = {
        "gif": lambda: gif_of_screen(65_000),
        "bmp": lambda: bmp_of(13_000, 13_000),
        "avif": lambda: with_size("avif", 64, 13_000),
        "heic": lambda: with_size("heic", 64, 13_000),
        "tif": lambda: tiled_tiff(13_000, 13_000),
        "jp2": lambda: hollow_jp2("RGB", 13_000),
        "tile": lambda: tiled_tiff(16, 40_000),
        # 250 bytes each; OpenJPEG would allocate 0.8 and 11.9 GB for the first two.
        "blocks": lambda: hollow_jp2("RGB", 3000, width=0),
        "precincts": lambda: hollow_jp2("RGB", 3000, precinct=1),
        "components": lambda: hollow_jp2("RGBA", 10_000),
    }[name]()
    assert len(data) < 10_000
    with pytest.raises(BadImageError, match=message) as caught:
        decode_image(data)
    assert caught.value.reason in ("too_many_pixels", "not_an_image")


@pytest.mark.parametrize("suffix", ["heic", "jp2"])
def test_an_image_that_is_larger_than_it_says_is_broken(suffix: str) -> None:
    with pytest.raises(BadImageError) as caught:
        decode_image(with_size(suffix, 1024, 16))
    assert caught.value.reason == "broken_image"


def test_tags_that_all_lead_to_one_large_piece_are_not_all_read() -> None:
    """In a file of 1 MB, 5,000 tags with the same 1 MB as value would take 5 GB."""
    count, size = 5000, 1 << 20
    at = 10 + 12 * count + 4
    tags = [struct.pack("<HHII", 40_000 + i, 7, size, at) for i in range(count)]
    start = struct.pack("<HHII", 256, 4, 1, 4) + struct.pack("<HHII", 257, 4, 1, 4)
    entries = start + b"".join(tags)
    data = b"II*\0" + struct.pack("<IH", 8, count + 2) + entries + bytes(4) + bytes(size + 24)
    with pytest.raises(BadImageError):
        decode_image(data)


def test_the_error_for_a_missing_decoder_names_the_install_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadImageError, match="HEIC needs a decoder: pip install 'capmix") as caught:
        decode_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    assert caught.value.reason == "no_decoder"


def test_the_brands_of_a_file_distinguish_avif_and_heic() -> None:
    box = b"\0\0\0\x18ftypmif1\0\0\0\0mif1"
    assert [getattr(format_of(box + one), "name", None) for one in (b"avif", b"heic")] == [
        "AVIF",
        "HEIC",
    ]
    assert format_of(b"\0\0\0\x14ftypisom\0\0\0\0mp42" + b"heic") is None


def test_a_folder_of_every_format_is_indexed(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    suffixes = [suffix for one in FORMATS for suffix in one.suffixes]
    usual = {suffix: one.suffixes[0] for one in FORMATS for suffix in one.suffixes}
    (tmp_path / "p").mkdir()
    for suffix in suffixes:
        data = encoded(picture(), usual[suffix])
        (tmp_path / f"p/a_{suffix}.{suffix.upper()}").write_bytes(data)
    work = open_workspace(str(tmp_path / "p"), str(tmp_path / "w"))
    counts = work.run(lambda: index_stages(work.pool))[0]
    assert (counts.ok, counts.total) == (len(suffixes), len(suffixes))
    (shard,) = open_pool(str(tmp_path / "p")).shards
    found = [one.suffix for one in work.pool.read(shard) if isinstance(one, Sample)]
    assert found == sorted(suffixes)


def test_images_of_other_formats_go_through_tars_export_and_thumbnails(tmp_path: Path) -> None:
    images = {suffix: encoded(picture(), suffix) for suffix in ("heic", "avif", "tif", "gif")}
    (tmp_path / "p").mkdir()
    texts = [(f"{suffix}.txt", b"a text") for suffix in images]
    pairs = zip(((f"{one}.{one}", data) for one, data in images.items()), texts, strict=True)
    (tmp_path / "p/0.tar").write_bytes(tar_bytes([member for pair in pairs for member in pair]))
    work = open_workspace(str(tmp_path / "p"), str(tmp_path / "w"))
    counts = work.mix("raw").export(tmp_path / "out")
    assert (counts.ok, counts.total) == (4, 4)
    exported = open_pool(str(tmp_path / "out"))
    found = [one for shard in exported.shards for one in exported.read(shard)]
    assert {one.suffix: one.image for one in found if isinstance(one, Sample)} == images
    rows = [{"shard": "0", "key": suffix, "uid": suffix} for suffix in images]
    shown = thumbnails(work.pool, rows)
    assert [shown[suffix][8:12] for suffix in images] == [b"WEBP"] * 4


def test_images_of_other_formats_are_read_from_tables(tmp_path: Path) -> None:
    images = [encoded(picture(), suffix) for suffix in ("heic", "avif", "jp2", "bmp")]
    table = pa.table({"image": [{"bytes": data, "path": None} for data in images]})
    pq.write_table(table, tmp_path / "a.parquet")
    pool = open_pool(str(tmp_path))
    found = list(pool.read(pool.shards[0]))
    assert [getattr(one, "suffix", one) for one in found] == ["heic", "avif", "jp2", "bmp"]
