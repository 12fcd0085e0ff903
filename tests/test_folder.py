from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from l2l.data import folder
from l2l.data.folder import read_folder, read_pairs
from l2l.data.read import read
from l2l.errors import BadRecords, InputError
from l2l.rle import Rle

SHARED = Path(__file__).parents[2] / "shared" / "data"
MASK = np.zeros((4, 6), bool)
MASK[1:3, 2:5] = True


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "img").mkdir()
    Image.new("RGB", (6, 4)).save(tmp_path / "img" / "a.png")
    Image.fromarray(MASK.astype(np.uint8) * 255).save(tmp_path / "m.png")
    return tmp_path


def test_every_way_to_say_it(root: Path) -> None:
    rle = Rle.encode(MASK)
    write(
        root / "metadata.jsonl",
        {"file_name": "img/a.png", "sentences": ["a", "b"], "mask": "m.png", "split": "val", "id": 7},
        {"image": "./img/a.png", "sentence": "c", "mask": rle.to_coco()},
        "",
        {"file_name": "img/a.png", "expression": "d", "masks": ["m.png", rle.to_coco()]},
        {"file_name": "img/a.png", "text": "e", "masks": []},
        {"file_name": "img/a.png", "text": "f", "mask": None},
        {"file_name": "img/a.png", "text": "g", "image_id": 12},
    )
    samples = read_folder(root)
    assert [sample.targets for sample in samples] == [(rle,), (rle,), (rle, rle), (), None, None]
    assert [sample.sentences for sample in samples] == [("a", "b"), ("c",), ("d",), ("e",), ("f",), ("g",)]
    assert [sample.id for sample in samples] == ["7", "2", "4", "5", "6", "l7"]
