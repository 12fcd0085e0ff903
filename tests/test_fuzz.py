"""Every parser under noise: it returns a value or raises what it documents, within time. Found crashers are replayed.

`L2L_FUZZ_EXAMPLES=5000` looks longer, and elsewhere each time; without it the same few examples are tried.
"""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from l2l.data import images
from l2l.data.folder import read_folder, read_pairs
from l2l.data.pickles import load_plain
from l2l.data.refer import read_refer
from l2l.data.shards import read_shard
from l2l.data.splits import Split
from l2l.errors import BadRecords, InputError
from l2l.exchange import brush
from l2l.exchange.coco import read_coco
from l2l.exchange.cvat import read_cvat
from l2l.exchange.label_studio import read_label_studio
from l2l.exchange.labels import read_labels
from l2l.exchange.png import read_png
from l2l.priors.answers import DIALECTS, read
from l2l.priors.precomputed import Precomputed
from l2l.priors.prior import Prior
from l2l.priors.store import FILE, PriorStore
from l2l.report_curves import read_metrics
from l2l.rle import Rle
from l2l.sample import Sample
from l2l.training.checkpoint import load_tensors, save_tensors

CORPUS = Path(__file__).parent / "corpus"
WANTED = os.environ.get("L2L_FUZZ_EXAMPLES", "")
SECONDS = 10.0  # of the processor, for one example
SIZE = (4, 6)
RLE = {"size": list(SIZE), "counts": [3, 5, 16]}
fuzz = settings(
    max_examples=int(WANTED or 40), derandomize=not WANTED, deadline=None, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


def png() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.arange(SIZE[0] * SIZE[1] * 3, dtype=np.uint8).reshape(*SIZE, 3)).save(out, format="PNG")
    return out.getvalue()


def jpeg() -> bytes:
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(out, format="JPEG", exif=exif)
    return out.getvalue()


# --- parsers: each takes the bytes of a file, and a folder to put it in ---------------------------------------------


def a_pickle(content: bytes, folder: Path) -> object:
    return load_plain(put(folder / "refs(x).p", content))


def refs(content: bytes, folder: Path) -> object:
    put(folder / "images" / "a.png", png())
    put(folder / "instances.json", INSTANCES)
    put(folder / "refs(x).p", content)
    return read_refer(folder)


def instances(content: bytes, folder: Path) -> object:
    put(folder / "images" / "a.png", png())
    put(folder / "instances.json", content)
    put(folder / "refs(x).p", REFS)
    return [sample.mask() for sample in read_refer(folder)]


def metadata(content: bytes, folder: Path) -> object:
    put(folder / "a.png", png())
    put(folder / "metadata.jsonl", content)
    return read_folder(folder)


def pairs(content: bytes, folder: Path) -> object:
    put(folder / "a.png", png())
    return read_pairs(put(folder / "pairs.jsonl", content))


def labels(content: bytes, folder: Path) -> object:
    return read_labels(put(folder / "labels.jsonl", content))


def priors(content: bytes, folder: Path) -> object:
    path = str(folder / "a.png")
    sample = Sample(id="1", image=path, image_id="1", size=SIZE, sentences=("it",), sentence_ids=("1",))
    return Precomputed(put(folder / "priors.jsonl", content)).answer([(sample, "it")])


def store(content: bytes, folder: Path) -> object:
    put(folder / "store" / FILE, content)
    opened = PriorStore(folder / "store")
    try:
        return opened.about(), len(opened), opened.get(["k"])
    finally:
        opened.close()


def reply(content: bytes, folder: Path) -> object:
    try:
        text = content.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    found = [read(text, one, SIZE) for one in DIALECTS.values()]
    assert all(isinstance(one, Prior) for one in found)
    return found


def rle(content: bytes, folder: Path) -> object:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = {"size": list(SIZE), "counts": content}
    return Rle.from_coco(value).decode()


def checkpoint(content: bytes, folder: Path) -> object:
    return load_tensors(put(folder / "checkpoint.safetensors", content))


def picture(content: bytes, folder: Path) -> object:
    path = str(put(folder / "a.jpg", content))
    images.size(path, verify=True)
    return images.load(path)


def tar(content: bytes, folder: Path) -> object:
    return list(read_shard(Path("a.tar"), content=content, bad=BadRecords(skip=True)))


def parquet(content: bytes, folder: Path) -> object:
    pytest.importorskip("pyarrow")
    return list(read_shard(Path("a.parquet"), content=content, bad=BadRecords(skip=True)))


def coco(content: bytes, folder: Path) -> object:
    return list(read_coco(put(folder / "coco.json", content)))


def cvat(content: bytes, folder: Path) -> object:
    return list(read_cvat(put(folder / "cvat.zip", content)))


def label_studio(content: bytes, folder: Path) -> object:
    return list(read_label_studio(put(folder / "export.json", content)))


def table(content: bytes, folder: Path) -> object:
    put(folder / "masks" / "a.png", png())
    return list(read_png(put(folder / "index.csv", content)))


def split(content: bytes, folder: Path) -> object:
    return Split.load(put(folder / "split.json", content))


def metrics(content: bytes, folder: Path) -> object:
    return read_metrics(put(folder / "metrics.jsonl", content))


def request(content: bytes, folder: Path) -> object:
    pytest.importorskip("fastapi")
    from l2l.serving.asks import Decision, LabelRequest, PredictRequest, _model, parse
    from l2l.serving.refusal import Refusal

    for kind in (PredictRequest, LabelRequest, Decision):
        with suppress(Refusal):
            _model(kind, parse(content))
    return None


def interface(content: bytes, folder: Path) -> object:
    pytest.importorskip("fastapi")
    from l2l.serving.label_studio import Project
    from l2l.serving.refusal import Refusal

    try:
        return Project.read(content.decode("utf-8", "replace"))
    except Refusal:
        return None


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- seeds: what is whole --------------------------------------------------------------------------------------------


def text_of(value: object) -> bytes:
    return json.dumps(value).encode()


REF = {"ref_id": 1, "image_id": 1, "ann_id": [1, 2], "file_name": "a.png", "split": "train",
       "sentences": [{"sent_id": 1, "sent": "it"}]}  # fmt: skip
REFS = pickle.dumps([REF], protocol=2)
IMAGE = {"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}
OUTLINE = [[0.0, 0.0, 3.0, 0.0, 3.0, 3.0]]
INSTANCES = text_of({"images": [IMAGE], "annotations": [
    {"id": 1, "image_id": 1, "segmentation": OUTLINE}, {"id": 2, "segmentation": RLE}]})  # fmt: skip
COCO = text_of({"images": [IMAGE], "annotations": [
    {"id": 1, "image_id": 1, "sentence_id": "a", "segmentation": OUTLINE}]})  # fmt: skip
LINE = {"id": "a", "file_name": "a.png", "image": "a.png", "sentence": "it", "mask": RLE, "image_id": 3, "score": 0.5,
        "segmentation": RLE, "split": "train"}  # fmt: skip
REGION = {"type": "polygonlabels", "original_height": 4, "original_width": 6,
          "value": {"points": [[0, 0], [50, 0], [50, 50]]}}  # fmt: skip
BRUSH = {"type": "brushlabels", "original_height": 4, "original_width": 6,
         "value": {"rle": brush.encode(np.eye(*SIZE) > 0)}}  # fmt: skip
TASK = {"id": 1, "data": {"sentence_id": "a", "file_name": "a.png"},
        "annotations": [{"id": 1, "updated_at": "x", "result": [REGION, BRUSH]}]}  # fmt: skip
FOUND = {"image": "a.png", "expression": "it", "boxes": [[0, 0, 3, 3]], "scores": [0.5], "points": [[1, 1]],
         "mask": RLE, "head": "it", "attributes": ["red"]}  # fmt: skip


def a_tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as file:
        for name, content in (("a.png", png()), ("a.json", b'{"sentence": "it"}'), ("\u00e9" * 60 + ".png", png())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return out.getvalue()


def a_zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("annotations/instances_default.json", COCO)
    return out.getvalue()


def a_checkpoint(folder: Path) -> bytes:
    save_tensors(folder / "whole", {"a": torch.ones(2, 3), "b": torch.zeros(1)}, {"step": 1})
    return (folder / "whole").read_bytes()


def a_store(folder: Path) -> bytes:
    whole = PriorStore(folder / "seed", create=True)
    whole.put([("k", Prior(boxes=((0.0, 0.0, 0.5, 0.5),), scores=(0.5,)))])
    whole.close()
    return (folder / "seed" / FILE).read_bytes()


def a_parquet() -> bytes:
    pytest.importorskip("pyarrow")
    from l2l.data.parquet import write_parquet
    from l2l.data.shards import Packed

    sample = Sample(id="1", image="", image_id="1", size=SIZE, sentences=("it",), sentence_ids=("1",))
    return write_parquet([Packed("a.png", png(), (sample,))])


def a_table() -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows([["id", "mask", "image", "rejected"], ["a", "masks/a.png", "a.png", "no"]])
    return out.getvalue().encode()


CONFIG = b"""<View><Text name="what" value="$say"/><Image name="img" value="$image"/>
<BrushLabels name="brush" toName="img"><Label value="Target"/></BrushLabels></View>"""
TARGETS: dict[str, tuple[Callable[[bytes, Path], object], Callable[[Path], bytes]]] = {
    "pickle": (a_pickle, lambda _: pickle.dumps([REF, (1, b"a", {2.5})], protocol=2)),
    "refs": (refs, lambda _: REFS),
    "instances": (instances, lambda _: INSTANCES),
    "metadata": (metadata, lambda _: text_of(LINE)),
    "pairs": (pairs, lambda _: text_of(LINE)),
    "labels": (labels, lambda _: text_of(LINE)),
    "priors": (priors, lambda _: text_of(FOUND)),
    "store": (store, a_store),
    "reply": (reply, lambda _: b'It: ```json\n[{"bbox_2d": [1, 2, 3, 4], "score": 0.5}]``` (1,2),(3,4) <loc_1>'
                               b'<loc_2><loc_3><loc_4> <point x="1" y="2">'),
    "rle": (rle, lambda _: text_of(RLE)),
    "checkpoint": (checkpoint, a_checkpoint),
    "picture": (picture, lambda _: jpeg()),
    "tar": (tar, lambda _: a_tar()),
    "parquet": (parquet, lambda _: a_parquet()),
    "coco": (coco, lambda _: COCO),
    "cvat": (cvat, lambda _: a_zip()),
    "label_studio": (label_studio, lambda _: text_of([TASK])),
    "table": (table, lambda _: a_table()),
    "split": (split, lambda _: text_of({"rate": 0.5, "seed": 0, "data": "a", "fingerprint": "b", "images": ["1"],
                                        "hash": "c"})),
    "metrics": (metrics, lambda _: b'{"step": 1, "loss": 2}\n{"step": 1, "event": "x"}\n{"step": 2, "probe": {}}'),
    "request": (request, lambda _: text_of({"image": "QQ==", "sentence": "it", "boxes": [[0, 0, 1, 1]]})),
    "interface": (interface, lambda _: CONFIG),
}  # fmt: skip

JUNK = (
    b"", b"\0", b"\xff" * 4, b"-1", b"1e999", b"NaN", b"Infinity", b"9" * 30, b"9" * 5000, b"[" * 2000, b'{"a":' * 2000,
    b"null", b"true", b'"x"', b"[]", b"{}", b'"\\ud800"', b"\xed\xa0\x80", b'"../../x"', b'"C:\\\\x"',
    b'"\\u0000"', b"'",
    b"<!DOCTYPE", b",", b"\n", b"4294967296", b"9223372036854775808", b"0.5", b'"' + b"a" * 5000 + b'"',
    struct.pack("<Q", 2**63), struct.pack(">I", 2**31),
)  # fmt: skip
cuts = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 24), st.sampled_from(JUNK) | st.binary(max_size=8)), max_size=4
)


def values_of(seed: bytes) -> list[tuple[int, int]]:
    """Where the single values of a JSON text begin and end."""
    ends = (b",", b"}", b"]")
    found, start = [], 0
    for at in range(len(seed)):
        letter = seed[at : at + 1]
        if letter in ends and at > start:
            found.append((start, at))
        if letter in (b":", b"[", b",", b"{"):
            start = at + 1
    return found


def changed(seed: bytes, edits: list[tuple[float, int, bytes]], by_value: bool) -> bytes:
    """Pieces of a whole file, or values of a JSON text, replaced by junk."""
    content = seed
    for where, length, junk in edits:
        places = values_of(content) if by_value else []
        start, end = places[int(where * (len(places) - 1))] if places else (0, 0)
        if not places:
            start = int(where * len(content))
            end = start + length
        content = content[:start] + junk + content[end:]
    return content


def holds(target: str, content: bytes, folder: Path) -> None:
    """The property."""
    began = time.process_time()
    try:
        TARGETS[target][0](content, folder)
    except InputError as error:
        assert error.reason
    assert time.process_time() - began < SECONDS


@pytest.mark.parametrize("target", TARGETS)
def test_a_whole_file_is_read(target: str, tmp_path: Path) -> None:
    try:
        TARGETS[target][0](TARGETS[target][1](tmp_path), tmp_path)
    except InputError as error:
        assert target == "split" and "edited or truncated" in error.reason


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.filterwarnings("ignore")
def test_noise(target: str, tmp_path: Path) -> None:
    seed = TARGETS[target][1](tmp_path)

    @fuzz
    @given(cuts, st.booleans())
    def noise(edits: list[tuple[float, int, bytes]], by_value: bool) -> None:
        holds(target, changed(seed, edits, by_value and seed[:1] in b"{["), tmp_path)

    noise()


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
@pytest.mark.filterwarnings("ignore")
def test_what_once_broke(path: Path, tmp_path: Path) -> None:
    holds(path.parent.name, path.read_bytes(), tmp_path)
