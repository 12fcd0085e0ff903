from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from l2l.data import images
from l2l.errors import InputError

ORIENTATION = 0x0112
RGB = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


def save(path: Path, picture: Image.Image, **options: object) -> str:
    picture.save(path, **options)
    return str(path)


def test_rgb_comes_back_as_it_was(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(RGB))
    loaded = images.load(path)
    assert loaded.dtype == np.uint8 and loaded.flags.writeable
    assert np.array_equal(loaded, RGB)
    assert images.size(path) == images.size(path, verify=True) == (4, 6)


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_tag_turns_pixels_and_size(tmp_path: Path, orientation: int, suffix: str) -> None:
    quarters = np.zeros((16, 32), np.uint8)  # even a JPEG keeps these apart
    quarters[:8, :16], quarters[:8, 16:], quarters[8:, :16], quarters[8:, 16:] = 0, 60, 120, 240
    upright = {
        1: quarters,
        2: quarters[:, ::-1],
        3: quarters[::-1, ::-1],
        4: quarters[::-1],
        5: quarters.T,
        6: np.rot90(quarters, -1),
        7: np.rot90(quarters, 2).T,
        8: np.rot90(quarters),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(np.dstack([quarters] * 3)), exif=exif)
    assert images.size(path) == upright.shape
    assert np.abs(images.load(path)[..., 0].astype(int) - upright).max() < 20


def test_size_does_not_decode_pixels(tmp_path: Path) -> None:
    path = Path(save(tmp_path / "a.png", Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), "u1"))))
    path.write_bytes(path.read_bytes()[:200])
    assert images.size(str(path)) == (50, 70)
    with pytest.raises(InputError, match="truncated"):
        images.load(str(path))


def test_damage_shows_in_verify(tmp_path: Path) -> None:
    path = Path(save(tmp_path / "a.png", Image.fromarray(RGB)))
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 0xFF
    path.write_bytes(content)
    assert images.size(str(path)) == (4, 6)
    with pytest.raises(InputError):
        images.size(str(path), verify=True)


def test_grey_palette_and_one_bit(tmp_path: Path) -> None:
    grey = Image.fromarray(RGB[..., 0])
    assert np.array_equal(images.load(save(tmp_path / "g.png", grey)), np.dstack([RGB[..., 0]] * 3))
    palette = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), mode="P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    loaded = images.load(save(tmp_path / "p.png", palette))
    assert loaded.tolist() == [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 255, 0]]]
    bits = Image.fromarray(np.array([[True, False]]))
    assert images.load(save(tmp_path / "b.png", bits)).tolist() == [[[255] * 3, [0] * 3]]


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    rgba = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    assert images.load(save(tmp_path / "a.png", Image.fromarray(rgba))).tolist() == [
        [[200, 0, 0], [255, 255, 255], [204, 204, 204]]
    ]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    palette.putpalette([9, 9, 9, 0, 255, 0])
    assert images.load(save(tmp_path / "p.png", palette, transparency=0)).tolist() == [[[255] * 3, [0, 255, 0]]]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    deep = Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16))
    for name in ("a.png", "a.tif"):
        assert images.load(save(tmp_path / name, deep))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_cmyk(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=95)
    assert np.abs(images.load(path).astype(int) - [255, 0, 0]).max() < 12


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert images.load(path)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("use", [images.load, images.size, images.digest])
def test_a_missing_file_is_named(tmp_path: Path, use: object) -> None:
    path = str(tmp_path / "none.png")
    with pytest.raises(InputError, match="no such image") as caught:
        use(path)  # type: ignore[operator]
    assert caught.value.file == path


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\0\0"])
def test_what_is_no_picture_is_an_input_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(InputError):
        images.load(str(path))
    with pytest.raises(InputError):
        images.load(str(tmp_path))


def test_a_truncated_jpeg_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    save(path, Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), "u1")))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(InputError, match="truncated"):
        images.load(str(path))


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = b"P5 20000 20000 255\n"  # a header is enough
    (tmp_path / "a.pgm").write_bytes(bomb)
    with pytest.raises(InputError, match="pixels"):
        images.load(str(tmp_path / "a.pgm"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(InputError, match="200,000,000 pixels"):
        images.size(str(tmp_path / "a.pgm"))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_picture(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(RGB), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    assert np.array_equal(images.load(path), RGB)


def test_digest_is_over_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert images.digest(str(tmp_path / "a")) == hashlib.blake2b(b"abc", digest_size=16).hexdigest()
    address = "scenes:world:0:1"
    assert images.digest(address) == hashlib.blake2b(address.encode(), digest_size=16).hexdigest()
