"""Parquet shards: one row per referent, as Hugging Face `datasets` opens them, the picture as an Image.

The same picture stands in the rows of all its referents; side by side, they cost the compressed file almost nothing.
Features as https://huggingface.co/docs/datasets/about_dataset_features keeps them: JSON under the key `huggingface`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from l2l.data.images import size
from l2l.data.refer import MALFORMED, reason
from l2l.data.shards import Packed, inside, record_of, sample_of
from l2l.errors import BadRecords, InputError
from l2l.sample import Sample

GROUP = 100  # rows of a row group: what is lost together where a file is damaged, and in memory at a time
READ = ("id", "image", "image_id", "split", "sentences", "sentence", "expression", "text", "sentence_ids", "masks",
        "chosen")  # fmt: skip


def write_parquet(pictures: list[Packed]) -> bytes:
    """A parquet file as bytes: `id`, `image` (struct of bytes and path), `image_id`, `split`, `sentences`,
    `sentence_ids`, `masks` (COCO RLE; null where nothing is known), `chosen`.

    Raises `InputError` if pyarrow is missing.
    """
    pa, parquet = _arrow()
    rows = [
        {"image": {"bytes": one.content, "path": one.name}, "image_id": sample.image_id, **record_of(sample)}
        for one in pictures for sample in one.samples
    ]  # fmt: skip
    text = pa.string()
    mask = pa.struct([("size", pa.list_(pa.int32())), ("counts", text)])
    string: dict[str, Any] = {"dtype": "string", "_type": "Value"}
    features = {
        "id": string, "image": {"_type": "Image"}, "image_id": string, "split": string,
        "sentences": {"feature": string, "_type": "List"}, "sentence_ids": {"feature": string, "_type": "List"},
        "masks": {"feature": {"size": {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "List"},
                              "counts": string}, "_type": "List"},
        "chosen": {"dtype": "bool", "_type": "Value"},
    }  # fmt: skip
    schema = pa.schema(
        [("id", text), ("image", pa.struct([("bytes", pa.binary()), ("path", text)])), ("image_id", text),
         ("split", text), ("sentences", pa.list_(text)), ("sentence_ids", pa.list_(text)), ("masks", pa.list_(mask)),
         ("chosen", pa.bool_())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )  # fmt: skip
    out = io.BytesIO()
    table = pa.Table.from_pylist(rows, schema=schema)
    parquet.write_table(table, out, compression="zstd", row_group_size=GROUP, use_dictionary=False,
                        write_page_checksum=True)  # fmt: skip
    return out.getvalue()


def read_parquet(path: Path, content: bytes, bad: BadRecords) -> Iterator[tuple[Sample, bytes]]:
    """The samples of a parquet file, each with its picture's bytes; see `data.shards.read_shard`.

    Needed are `image` and one of `sentences`, `sentence`, `expression`, `text`; the other columns may be missing.
    """
    pa, parquet = _arrow()
    try:
        file = parquet.ParquetFile(io.BytesIO(content), page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"no whole parquet file: {error}", file=path) from error
    columns = [name for name in file.schema_arrow.names if name in READ]
    row = 0
    for group in range(file.num_row_groups):
        last = row + file.metadata.row_group(group).num_rows
        parts = file.iter_batches(GROUP, row_groups=[group], columns=columns)
        while row < last:
            try:  # not the group at once: a few bytes can say that a row is there a billion times
                rows = next(parts).to_pylist()
            except StopIteration:
                bad.add("damaged: fewer rows than it says", file=path.name, record=f"rows {row} to {last - 1}")
                break
            except (pa.ArrowException, OSError, ValueError) as error:
                bad.add(f"damaged: {error}", file=path.name, record=f"rows {row} to {last - 1}")
                break
            for number, value in enumerate(rows, row):
                try:
                    yield _sample(path, number, value)
                except MALFORMED as error:
                    bad.add(reason(error), file=path.name, record=f"row {number}")
            row += len(rows)
        row = last


def _sample(path: Path, row: int, value: dict[str, Any]) -> tuple[Sample, bytes]:
    picture = value.get("image")
    content, name = (picture.get("bytes"), picture.get("path")) if isinstance(picture, dict) else (picture, None)
    if not isinstance(content, bytes):
        raise InputError("no bytes in the column image")
    inside(str(name or row))
    image = f"{path.name}/{name or row}"
    told = value.get("image_id")
    sample = sample_of(
        value, key=f"r{row}", image=image, image_id=str(name or row) if told is None else str(told),
        size=size(image, content=content), provenance=f"{path.name}, row {row}",
    )  # fmt: skip
    return sample, content


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise InputError("parquet needs the pyarrow package: pip install pyarrow") from error
    return pa, parquet
