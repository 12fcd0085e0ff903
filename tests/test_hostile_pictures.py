"""Pictures of all kinds, and what only pretends to be one: read right, or one clear error; check and training agree."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from l2l.data import images
from l2l.data.check import check
from l2l.data.read import read
from l2l.data.readable import readable
from l2l.errors import BadRecords, InputError
from l2l.training.pool import load_images

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 255, (8, 12, 3), dtype=np.uint8)
EXIF = Image.Exif()
EXIF[0x0112] = 6


def saved(picture: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def palette() -> Image.Image:
    found = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode="P")
    found.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    return found


THIN = np.arange(60_000 * 3, dtype=np.uint32).reshape(1, 60_000, 3).astype(np.uint8)
DEEP = np.array([[[0x0102, 0x8040, 0xFFFF]]], ">u2")
FRAMES = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
RED = np.full((3, 4, 3), (255, 0, 0), np.uint8)

GOOD: dict[str, tuple[bytes, np.ndarray, int]] = {
    "thin.png": (saved(Image.fromarray(THIN), "PNG"), THIN, 0),
    "tall.png": (saved(Image.fromarray(THIN.transpose(1, 0, 2)), "PNG"), THIN.transpose(1, 0, 2), 0),
    "one.png": (saved(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"), np.array([[[1, 2, 3]]], np.uint8), 0),
    "cmyk.tif": (saved(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "TIFF"),
                 np.full((2, 2, 3), (255, 0, 0), np.uint8), 0),
    "cmyk.jpg": (saved(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=95),
                 np.full((8, 8, 3), (0, 255, 255), np.uint8), 12),
    "grey16.png": (saved(Image.fromarray(np.array([[0, 257, 65535]], np.uint16)), "PNG"),
                   np.repeat(np.array([[0, 1, 255]], np.uint8)[..., None], 3, 2), 0),
    "rgb16.png": (raw_png(1, 1, 16, 2, b"\0" + DEEP.tobytes()), np.array([[[1, 128, 255]]], np.uint8), 1),
    "turned.png": (saved(Image.fromarray(RGB), "PNG", exif=EXIF), np.rot90(RGB, -1), 0),
    "turned.webp": (saved(Image.fromarray(RGB), "WEBP", lossless=True, exif=EXIF), np.rot90(RGB, -1), 0),
    "moving.gif": (saved(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), RED, 0),
    "moving.png": (saved(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]), RED, 0),
    "moving.webp": (saved(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:], lossless=True), RED, 0),
    "clear.png": (saved(palette(), "PNG", transparency=1),
                  np.array([[[255, 0, 0], [255, 255, 255], [0, 0, 255]]], np.uint8), 0),
    "clear.gif": (saved(palette(), "GIF", transparency=1),
                  np.array([[[255, 0, 0], [255, 255, 255], [0, 0, 255]]], np.uint8), 0),
    "png-named.jpg": (saved(Image.fromarray(RGB), "PNG"), RGB, 0),
    "<img src=x onerror=alert(1)>\u202e\u0627.png": (saved(Image.fromarray(RGB), "PNG"), RGB, 0),
}  # fmt: skip
BAD: dict[str, bytes] = {
    "claims-60000-squared.png": raw_png(60_000, 60_000, 8, 2, b""),
    "claims-65535-squared.gif": b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0;",
    "empty.jpg": b"",
    "text.jpg": b"this is no picture\n",
    "page.jpg": b"<html><script>alert(1)</script></html>",
    "vector.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
    "document.png": b"%PDF-1.7\n1 0 obj\n",
    "cut.png": saved(Image.fromarray(RGB), "PNG")[:-40],
    "cut.jpg": saved(Image.fromarray(RNG.integers(0, 255, (64, 64, 3), dtype=np.uint8)), "JPEG")[:-400],
    "cut.webp": saved(Image.fromarray(RGB), "WEBP", lossless=True)[:-60],
    "cut.tif": saved(Image.fromarray(RGB), "TIFF")[:60],
    "head-alone.gif": b"GIF89a" + struct.pack("<HH", 5, 5) + b"\0\0\0;",
}


@pytest.mark.parametrize("name", GOOD)
def test_values_and_orientation(name: str, tmp_path: Path) -> None:
    content, expected, apart = GOOD[name]
    path = tmp_path / name
    path.write_bytes(content)
    found = images.load(str(path))
    assert found.shape == expected.shape == (*images.size(str(path), verify=True), 3)
    assert int(np.abs(found.astype(int) - expected).max()) <= apart


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("name", BAD)
def test_one_clear_error_that_names_the_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(BAD[name])
    for use in (images.load, lambda image: images.load(image, content=BAD[name])):
        with pytest.raises(InputError, match="image") as caught:
            use(str(path))
        assert caught.value.file == str(path) and "\n" not in str(caught.value)


def test_ghostscript_is_never_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was asked"))
    (tmp_path / "a.jpg").write_bytes(BAD["postscript.jpg"])
    with Image.open(tmp_path / "a.jpg") as file:  # the way is real: Pillow by itself takes it
        assert file.format == "EPS"
    with pytest.raises(InputError, match="no picture in a format that is read"):
        images.load(str(tmp_path / "a.jpg"))


def folder_of(root: Path) -> Path:
    """All of them, as a data set with masks."""
    lines = []
    for name, content in {**{name: one[0] for name, one in GOOD.items()}, **BAD}.items():
        (root / name).write_bytes(content)
        lines.append({"file_name": name, "sentence": "it", "id": name})
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return root


@pytest.mark.filterwarnings("ignore")
def test_check_and_training_agree(tmp_path: Path) -> None:
    root = folder_of(tmp_path)
    data = read(root, skip_bad=True)
    report = check(root, deep=True)
    blamed = {problem.record for problem in report.problems}
    bad = BadRecords(skip=True, found=list(data.bad))
    kept = {sample.id for sample in readable(data.samples, bad)}
    assert kept == set(GOOD)
    assert {sample.id for sample in data.samples if sample.provenance not in blamed} == kept
    assert len(report.problems) == len(bad.found) == len(BAD)
    table, rows = load_images([sample for sample in data.samples if sample.id in kept], (8, 8))
    assert len(table) == len(rows) == len(GOOD)
    for sample in data.samples:
        if sample.id not in kept:  # and without --skip-bad training stops at it, by name
            with pytest.raises(InputError, match=sample.id):
                load_images([sample], (8, 8))


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("mode", ["L", "1", "RGBA", "P"])
def test_masks_lie_as_their_pictures_do(orientation: int, mode: str, tmp_path: Path) -> None:
    shape = np.zeros((8, 12), bool)
    shape[:2, :5] = True
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda one: one, 3: lambda one: np.rot90(one, 2), 6: lambda one: np.rot90(one, -1)
    }  # fmt: skip
    (tmp_path / "a.png").write_bytes(saved(Image.fromarray(RGB), "PNG", exif=exif))
    grey = Image.fromarray(shape.astype(np.uint8) * 255)
    (tmp_path / "m.png").write_bytes(saved(grey.convert(mode), "PNG", exif=exif))
    if mode == "P":  # not zero is meant, whatever the colour
        flat = Image.fromarray(shape.astype(np.uint8), mode="P")
        flat.putpalette([9, 9, 9, 0, 0, 0])
        (tmp_path / "m.png").write_bytes(saved(flat, "PNG", exif=exif))
    line = {"file_name": "a.png", "sentence": "it", "mask": "m.png"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line), encoding="utf-8")
    assert np.array_equal(read(tmp_path).samples[0].mask(), turn[orientation](shape))
