"""Parquet files that Hugging Face `datasets` opens with pictures and masks as images.

`load_dataset(OUT)` reads the folder, which can be pushed to the hub as it is; see `data.parquet` for the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from l2l.data.parquet import GROUP, _arrow
from l2l.exchange.labels import Label, picture_bytes
from l2l.exchange.png import png_of


def write_hub(labels: Sequence[Label], out: Path, *, per_file: int = 1000) -> None:
    """Write `data/train-N-of-M.parquet`: `id`, `image` (as it is on disk), `mask` (PNG, 0 and 255), `sentence`,
    `score`, `accepted` and `file_name`. A picture stands in the rows of all its sentences.

    Args:
        labels: one row each.
        out: the folder.
        per_file: rows of a file.

    Raises:
        InputError: if a picture or pyarrow is missing.
    """
    pa, parquet = _arrow()
    text = pa.string()
    picture = pa.struct([("bytes", pa.binary()), ("path", text)])
    string = {"dtype": "string", "_type": "Value"}
    features: dict[str, Any] = {
        "id": string, "image": {"_type": "Image"}, "mask": {"_type": "Image"}, "sentence": string,
        "score": {"dtype": "float64", "_type": "Value"}, "accepted": {"dtype": "bool", "_type": "Value"},
        "file_name": string,
    }  # fmt: skip
    schema = pa.schema(
        [("id", text), ("image", picture), ("mask", picture), ("sentence", text), ("score", pa.float64()),
         ("accepted", pa.bool_()), ("file_name", text)],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )  # fmt: skip
    (out / "data").mkdir(parents=True, exist_ok=True)
    for old in (out / "data").glob("train-*-of-*.parquet"):  # of an export with more files than this one
        old.unlink()
    files = max(1, -(-len(labels) // per_file))
    for number in range(files):
        path = out / "data" / f"train-{number:05}-of-{files:05}.parquet"
        rows = labels[number * per_file : (number + 1) * per_file]
        with parquet.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as file:
            for start in range(0, max(1, len(rows)), GROUP):  # a group in memory at a time
                group = [_row(one) for one in rows[start : start + GROUP]]
                file.write_table(pa.Table.from_pylist(group, schema=schema), row_group_size=GROUP)


def _row(label: Label) -> dict[str, Any]:
    return {
        "id": label.id, "image": {"bytes": picture_bytes(label), "path": label.file_name},
        "mask": {"bytes": png_of(label.mask.decode()), "path": None}, "sentence": label.sentence,
        "score": label.score, "accepted": label.accepted, "file_name": label.file_name,
    }  # fmt: skip
