from __future__ import annotations

import contextlib
import csv
import json
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from tiny import make_world, stir, train_arguments

from l2l.cli import main as l2l_main
from l2l.cli import parser
from l2l.data.read import read
from l2l.errors import BadRecords, InputError
from l2l.exchange import brush, commands
from l2l.exchange.coco import coco_content, corrections_of, read_coco, write_coco
from l2l.exchange.corrected import write_corrected
from l2l.exchange.cvat import read_cvat, write_cvat
from l2l.exchange.hub import write_hub
from l2l.exchange.label_studio import CONFIG, read_label_studio, task_of, write_label_studio
from l2l.exchange.labels import Label, read_labels
from l2l.exchange.png import _safe, read_png, write_png
from l2l.exchange.polygons import fill, outlines
from l2l.exchange.rank import choose, rank, write_ranking
from l2l.label import label
from l2l.rle import Rle

SIZE = (13, 17)
SENTENCES = (
    'the "left" cup', "two\nlines", "<b>bold</b> & <script>alert(1)</script>", "الكأس الأحمر على اليسار", "=1+1, a; b",
    "the cup", "cup\u2028and\rreturn",
)  # fmt: skip


def masks() -> dict[str, np.ndarray]:
    """The odd ones, and one with a hole, a speck in the hole, and corners that touch."""
    empty = np.zeros(SIZE, bool)
    one, column, ring, touching = empty.copy(), empty.copy(), empty.copy(), empty.copy()
    one[12, 16] = True
    column[:, 3] = True
    ring[2:11, 2:12] = True
    ring[4:9, 4:10] = False
    ring[6, 6] = True
    touching[3:6, 3:6] = touching[6:9, 6:9] = True
    noise = np.random.default_rng(0).random(SIZE) > 0.5
    return {"empty": empty, "full": ~empty, "one pixel": one, "column": column, "ring": ring, "touching": touching,
            "noise": noise}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A label folder: seven pairs on four pictures, one of them in a folder of its own."""
    pictures = tmp_path / "pictures"
    (pictures / "deep er").mkdir(parents=True)
    names = ["a.png", "b#1.png", "deep er/c.png", "d.jpg"]
    for place, name in enumerate(names):
        colours = np.random.default_rng(place).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(colours).save(pictures / name)
    out = tmp_path / "labels"
    out.mkdir()
    lines = [
        {"id": key, "image": str(pictures / names[place % 4]), "sentence": SENTENCES[place],
         "segmentation": Rle.encode(mask).to_coco(), "bbox": [0, 0, 0, 0], "score": round(0.1 + place / 8, 4),
         "acceptance": None, "accepted": place > 3, "prior": True}
        for place, (key, mask) in enumerate(masks().items())
    ]  # fmt: skip
    (out / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return out


@pytest.fixture
def labels(folder: Path) -> list[Label]:
    return read_labels(folder)


def run(*words: str) -> int:
    """A command of this package, through the parser that `cli.py` uses."""
    top = parser()
    try:
        args = top.parse_args(list(words))
    except SystemExit:  # not wired there yet
        from l2l.cli import Parser

        top = Parser(prog="l2l")
        commands.add(top.add_subparsers(dest="command", required=True, parser_class=Parser))
        args = top.parse_args(list(words))
    return int(args.run(args) or 0)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def same(found: Any, expected: np.ndarray) -> bool:
    return bool(np.array_equal(np.asarray(found) != 0, expected))


# The label folder


def test_labels_are_read_and_their_pictures_named(labels: list[Label], folder: Path) -> None:
    assert [one.id for one in labels] == list(masks())
    assert [one.file_name for one in labels[:4]] == ["a.png", "b#1.png", "deep er/c.png", "d.jpg"]
    assert [one.sentence for one in labels] == list(SENTENCES)
    named = read_labels(folder, images=folder.parent)
    assert named[2].file_name == "pictures/deep er/c.png"
    (folder.parent / "pictures").rename(folder.parent / "moved")
    moved = read_labels(folder / "labels.jsonl", images=folder.parent / "moved")
    assert moved[2].file_name == "deep er/c.png" and Path(moved[2].image).exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": 7}, "id and image are text"), ({"score": "x"}, "a score of x"), ({"score": float("nan")}, "a score of"),
        ({"segmentation": {"size": [2, 2], "counts": "~~"}}, "RLE"), ({"segmentation": None}, "RLE"),
        ({"sentence": " "}, "an empty sentence"), ({"sentence": "\ud800"}, "surrogates"), ({"id": "full"}, "second"),
    ],
)  # fmt: skip
def test_a_damaged_label_is_named(folder: Path, change: dict[str, Any], said: str) -> None:
    path = folder / "labels.jsonl"
    lines = path.read_text().splitlines()
    lines[3] = json.dumps(json.loads(lines[3]) | change)
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=f"labels.jsonl, line 4: .*{said}"):
        read_labels(folder)


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"id": "a"}', "[" * 100_000])
def test_labels_that_are_none(folder: Path, text: str) -> None:
    (folder / "labels.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"labels.jsonl, line 1"):
        read_labels(folder)


def test_no_labels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_labels(tmp_path)


# Polygons and brush strokes


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)))
def test_an_outline_is_exact(mask: np.ndarray) -> None:
    polygons = outlines(mask)
    assert bool(polygons) == bool(mask.any())
    if polygons:
        assert same(fill(polygons, mask.shape).decode(), mask)


@given(hnp.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))), st.floats(0.1, 3))
def test_a_tolerance_never_fails_nor_loses_a_shape(mask: np.ndarray, tolerance: float) -> None:
    polygons = outlines(mask, tolerance)
    assert len(polygons) == len(outlines(mask))
    assert all(len(one) >= 6 for one in polygons)


def test_a_tolerance_saves_points() -> None:
    y, x = np.mgrid[:200, :300]
    disc = ((x - 150) ** 2 + (y - 100) ** 2 < 80**2) & ((x - 150) ** 2 + (y - 100) ** 2 > 30**2)
    exact, rough = outlines(disc), outlines(disc, 1.0)
    assert len(rough[0]) < len(exact[0]) / 4
    found = fill(rough, disc.shape).decode()
    assert (found & disc).sum() / (found | disc).sum() > 0.97


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=20)))
def test_brush_strokes_are_those_of_label_studio(mask: np.ndarray) -> None:
    theirs = pytest.importorskip("label_studio_sdk.converter.brush", reason="label-studio-sdk is not installed")
    rle = brush.encode(mask)
    assert rle == theirs.mask2rle(mask.astype(np.uint8) * 255)
    assert same(theirs.decode_rle(rle).reshape(*mask.shape, 4)[..., 3], mask)
    assert same(brush.decode(theirs.mask2rle(mask.astype(np.uint8)), mask.shape), mask)


def test_long_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = pytest.importorskip("label_studio_sdk.converter.brush", reason="label-studio-sdk is not installed")
    mask = np.zeros((300, 400), bool)
    mask[100:, 7] = True
    mask[250:] = True
    rle = brush.encode(mask)
    assert same(theirs.decode_rle(rle).reshape(300, 400, 4)[..., 3], mask)
    assert same(brush.decode(rle, mask.shape), mask)


def test_a_stroke_in_colour_with_literals() -> None:
    """Label Studio's page writes the brush's colour, and single values as literals."""
    pixels = [(255, 64, 64, 255), (0, 0, 0, 0), (9, 8, 7, 0)]
    values = [value for pixel in pixels for value in pixel]
    head = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    text = head + f"0{1:02b}{len(values) - 1:04b}" + "".join(f"{value:08b}" for value in values)
    text += "0" * (-len(text) % 8)
    rle = [int(text[at : at + 8], 2) for at in range(0, len(text), 8)]
    assert brush.decode(rle, (1, 3)).tolist() == [[True, False, False]]
    theirs = pytest.importorskip("label_studio_sdk.converter.brush", reason="label-studio-sdk is not installed")
    assert theirs.decode_rle(rle).tolist() == values


@given(st.lists(st.integers(0, 255), max_size=60))
def test_broken_strokes(rle: list[int]) -> None:
    with contextlib.suppress(InputError):
        assert brush.decode(rle, (2, 3)).shape == (2, 3)


@pytest.mark.parametrize("rle", ["abc", None, [1, 2.5], [256], [-1], [True], [255] * 4, brush.encode(np.eye(4) > 0)])
def test_no_strokes(rle: Any) -> None:
    with pytest.raises(InputError, match="brush RLE"):
        brush.decode(rle, (2, 3))


# There: what the tools' own packages read


@pytest.mark.parametrize("polygons", [False, True])
def test_pycocotools_reads_coco(labels: list[Label], tmp_path: Path, polygons: bool) -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    write_coco(labels, tmp_path / "out" / "coco.json", polygons=polygons)
    found = coco.COCO(tmp_path / "out" / "coco.json")
    annotations = found.loadAnns(found.getAnnIds())
    assert [one["sentence_id"] for one in annotations] == [one.id for one in labels]
    for one, mine in zip(annotations, labels, strict=True):
        mask = mine.mask.decode()
        assert same(found.annToMask(one), mask)
        assert one["area"] == mask.sum() and one["score"] == mine.score and one["sentence"] == mine.sentence
        assert found.loadImgs(one["image_id"])[0]["file_name"] == mine.file_name
        left, top, width, height = one["bbox"]
        inside = np.zeros(SIZE, bool)
        inside[top : top + height, left : left + width] = True
        assert not (mask & ~inside).any() and (not mask.any() or mask[top].any() and mask[:, left].any())
        assert isinstance(one["segmentation"], list) == (polygons and bool(mask.any()))
    assert [one["name"] for one in found.loadCats(found.getCatIds())] == ["referent"]


@pytest.mark.parametrize("polygons", [False, True])
def test_label_studio_reads_tasks(labels: list[Label], tmp_path: Path, polygons: bool) -> None:
    theirs = pytest.importorskip("label_studio_sdk.converter.brush", reason="label-studio-sdk is not installed")
    from label_studio_sdk._extensions.label_studio_tools.core.label_config import parse_config
    from label_studio_sdk.label_interface import LabelInterface

    write_label_studio(labels, tmp_path / "tasks", polygons=polygons)
    config = (tmp_path / "tasks" / "config.xml").read_text()
    ElementTree.fromstring(config)
    assert set(parse_config(config)) == {"brush", "polygon", "verdict"}
    interface = LabelInterface(config)
    tasks = json.loads((tmp_path / "tasks" / "tasks.json").read_text())
    assert [one["data"]["sentence_id"] for one in tasks] == [one.id for one in labels]
    for task, mine in zip(tasks, labels, strict=True):
        prediction = task["predictions"][0]
        assert prediction["score"] == mine.score and task["data"]["sentence"] == mine.sentence
        assert interface.validate_prediction(prediction)
        assert (tmp_path / "tasks" / "images" / mine.file_name).exists()
        if not mine.mask.area():
            assert prediction["result"][0]["value"] == {"choices": ["nothing there"]}
        elif polygons:
            union = np.zeros(SIZE, bool)
            for one in prediction["result"]:
                corners = np.array(one["value"]["points"]) / 100 * [SIZE[1], SIZE[0]]
                union |= fill([corners.ravel().tolist()], SIZE).decode()
            assert same(union, mine.mask.decode())
        else:
            # as the SDK's converter flattens a result before it decodes it
            flat = [one | one["value"] for one in prediction["result"]]
            (layer,) = theirs.decode_from_annotation("brush", flat).values()
            assert same(layer, mine.mask.decode())
    address = task_of(labels[1], "https://host/")["data"]["image"]
    assert address == "https://host/b%231.png"


def test_datasets_opens_parquet(labels: list[Label], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    write_hub(labels, tmp_path / "hub", per_file=3)
    write_hub(labels, tmp_path / "hub", per_file=4)
    files = sorted(str(one) for one in (tmp_path / "hub" / "data").iterdir())
    assert [Path(one).name for one in files] == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    for source, more in (("parquet", {"data_files": files}), (str(tmp_path / "hub"), {})):
        found = datasets.load_dataset(source, split="train", cache_dir=str(tmp_path / "cache"), **more)
        assert isinstance(found.features["image"], datasets.Image)
        assert isinstance(found.features["mask"], datasets.Image)
        for row, mine in zip(found, labels, strict=True):
            assert (row["id"], row["sentence"], row["score"]) == (mine.id, mine.sentence, mine.score)
            assert same(row["mask"], mine.mask.decode())
            assert np.array_equal(np.asarray(row["image"]), np.asarray(Image.open(mine.image)))


@pytest.mark.parametrize("polygons", [False, True])
def test_datumaro_reads_the_zip(labels: list[Label], tmp_path: Path, polygons: bool) -> None:
    datumaro = pytest.importorskip("datumaro", reason="datumaro is not installed")
    write_cvat(labels, tmp_path / "out.zip", polygons=polygons)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    found = datumaro.Dataset.import_from(str(tmp_path / "unpacked"), "coco_instances")
    known = {one.id: one for one in labels}
    seen: dict[str, np.ndarray] = {}
    for item in found:
        assert item.media.data.shape[:2] == SIZE
        for one in item.annotations:
            if one.type == datumaro.AnnotationType.bbox:  # CVAT's own datumaro leaves it out where there is a mask
                continue
            key = one.attributes["sentence_id"]
            assert one.attributes["sentence"] == known[key].sentence
            assert Path(known[key].file_name).with_suffix("").as_posix() == item.id
            mask = fill([one.points], SIZE).decode() if polygons else np.asarray(one.image, bool)
            seen[key] = seen.get(key, np.zeros(SIZE, bool)) | mask
    assert set(seen) == set(known) - {"empty"}
    assert all(same(mask, known[key].mask.decode()) for key, mask in seen.items())

    # and what datumaro writes again, as CVAT does, comes back
    if not polygons and int(metadata.version("datumaro").split(".")[0]) < 1:
        pytest.skip("it was read; but datumaro 0.x cannot write masks with NumPy 2.4")
    found.export(str(tmp_path / "again"), "coco_instances", save_media=False)
    (again,) = (tmp_path / "again" / "annotations").glob("*.json")
    back = write_corrected(again, read_coco(again), labels, tmp_path / "corrected")
    assert (back.corrected, back.rejected, back.unlabelled) == (6, 0, 1)
    for one in read(tmp_path / "corrected").samples:
        assert same(one.mask(), known[one.id].mask.decode())


def test_the_zip_is_the_same_each_time(labels: list[Label], tmp_path: Path) -> None:
    write_cvat(labels, tmp_path / "a.zip", pictures=False)
    write_cvat(labels, tmp_path / "b.zip", pictures=False)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert zipfile.ZipFile(tmp_path / "a.zip").namelist() == ["annotations/instances_default.json"]
    told = json.loads((tmp_path / "a-label.json").read_text())
    assert [one["name"] for one in told[0]["attributes"]] == ["sentence", "sentence_id", "rejected"]


def test_png(labels: list[Label], tmp_path: Path) -> None:
    write_png(labels, tmp_path / "png")
    with (tmp_path / "png" / "index.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["sentence"] for row in rows] == list(SENTENCES)
    for row, mine in zip(rows, labels, strict=True):
        with Image.open(tmp_path / "png" / row["mask"]) as picture:
            assert picture.mode == "L" and same(picture, mine.mask.decode())
            assert set(np.unique(picture)) <= {0, 255}


@given(st.text(min_size=1, max_size=30).filter(lambda text: text.isprintable()))
def test_ids_as_file_names(key: str) -> None:
    name = _safe(key)
    assert name and "/" not in name and name[0] not in ".-" or name.startswith("id")
    assert _safe(key + "A") != _safe(key + "a")


# And back


def as_export(path: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Path:
    """A Label Studio export in which somebody submitted the predictions, after a change to each annotation."""
    tasks = json.loads(path.read_text())
    for number, task in enumerate(tasks, start=1):
        submitted = change({"id": number, "was_cancelled": False, "result": task["predictions"][0]["result"],
                            "updated_at": "2026-11-25T10:00:00Z"} | {"task": task["data"]["sentence_id"]})  # fmt: skip
        task |= {"id": number, "annotations": [] if submitted is None else [submitted]}
    out = path.with_name("export.json")
    out.write_text(json.dumps(tasks))
    return out


def send(kind: str, labels: list[Label], tmp_path: Path, polygons: bool) -> Any:
    out = tmp_path / "out"
    outline = {"polygons": polygons}
    if kind == "coco":
        write_coco(labels, out, **outline)
        return out, read_coco
    if kind == "cvat":
        write_cvat(labels, out, **outline)
        return out, read_cvat
    if kind == "png":
        write_png(labels, out)
        return out, read_png
    write_label_studio(labels, out, **outline)
    return as_export(out / "tasks.json", lambda one: one), read_label_studio


@pytest.mark.parametrize("polygons", [False, True])
@pytest.mark.parametrize("kind", ["coco", "cvat", "png", "label-studio"])
def test_there_and_back(kind: str, polygons: bool, labels: list[Label], tmp_path: Path) -> None:
    file, reading = send(kind, labels, tmp_path, polygons)
    found = write_corrected(file, reading(file), labels, tmp_path / "back")
    nobody = ["empty"] if kind == "cvat" else []  # CVAT has no empty shape
    assert (found.corrected, found.rejected, found.unlabelled) == (7 - len(nobody), 0, len(nobody))
    samples = read(tmp_path / "back").samples
    known = {one.id: one for one in labels}
    assert [one.id for one in samples] == [one.id for one in labels if one.id not in nobody]
    for one in samples:
        mine = known[one.id]
        assert one.sentence_ids == (mine.id,) and one.sentences == (mine.sentence,)
        assert one.image_id == mine.file_name and one.image == str(tmp_path / "back" / mine.file_name)
        assert same(one.mask(), mine.mask.decode())
        assert Path(one.image).read_bytes() == Path(mine.image).read_bytes()
        assert bool(one.targets) == bool(mine.mask.area())
    rest = lines_of(tmp_path / "back" / "unlabelled.jsonl")
    assert [one["id"] for one in rest] == nobody
    if rest:
        assert [one.id for one in read(tmp_path / "back" / "unlabelled.jsonl").samples] == nobody


def test_label_studio_answers(labels: list[Label], tmp_path: Path) -> None:
    write_label_studio(labels, tmp_path / "out")

    def change(one: dict[str, Any]) -> dict[str, Any] | None:
        match one["task"]:
            case "full":
                one["was_cancelled"] = True
            case "one pixel":
                one["result"] = []
            case "column":
                one["result"] = [{"type": "choices", "value": {"choices": ["reject"]}}, *one["result"]]
            case "ring":
                return None
            case "noise":  # two strokes, one of a pixel that was not there
                more = np.zeros(SIZE, bool)
                more[0, 0] = True
                one["result"].append(one["result"][0] | {"value": {"rle": brush.encode(more), "brushlabels": ["x"]}})
        return one

    file = as_export(tmp_path / "out" / "tasks.json", change)
    found = write_corrected(file, read_label_studio(file), labels, tmp_path / "back")
    assert (found.corrected, found.rejected, found.unlabelled) == (3, 3, 1)
    said = lines_of(tmp_path / "back" / "rejected.jsonl")
    assert [(one["id"], one["reason"]) for one in said] == [
        ("full", "skipped in Label Studio"), ("one pixel", "an annotation without a mask or a verdict"),
        ("column", "rejected in Label Studio"),
    ]  # fmt: skip
    samples = {one.id: one for one in read(tmp_path / "back").samples}
    assert set(samples) == {"empty", "touching", "noise"}
    assert samples["empty"].targets == ()
    assert samples["noise"].mask()[0, 0]
    assert [one["id"] for one in lines_of(tmp_path / "back" / "unlabelled.jsonl")] == ["ring"]


def test_the_latest_annotation_counts(labels: list[Label], tmp_path: Path) -> None:
    write_label_studio(labels[1:2], tmp_path / "out")
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text())
    result = tasks[0]["predictions"][0]["result"]
    old = {"id": 2, "updated_at": "2026-11-24T00:00:00Z", "was_cancelled": True, "result": []}
    tasks[0]["annotations"] = [{"id": 1, "updated_at": "2026-11-25T00:00:00Z", "result": result}, old]
    file = tmp_path / "export.json"
    file.write_text(json.dumps(tasks))
    (one,) = read_label_studio(file)
    assert one.mask is not None and same(one.mask.decode(), labels[1].mask.decode())


def test_coco_answers(labels: list[Label], tmp_path: Path) -> None:
    content = coco_content(labels)
    content["annotations"][1]["attributes"]["rejected"] = True
    del content["annotations"][2]["sentence_id"]  # CVAT keeps it under attributes
    content["annotations"][3]["segmentation"] = [[0, 0, 4, 0, 4, 4, 0, 4], [6, 6, 8, 6, 8, 8, 6, 8]]
    runs = Rle.from_coco(content["annotations"][4]["segmentation"]).runs().tolist()
    content["annotations"][4]["segmentation"]["counts"] = runs  # CVAT's masks
    content["annotations"].append(content["annotations"][5] | {"id": 99, "segmentation": [[0, 0, 1, 0, 1, 1, 0, 1]]})
    del content["annotations"][6]
    file = tmp_path / "coco.json"
    file.write_text(json.dumps(content))
    found = write_corrected(file, read_coco(file), labels, tmp_path / "back")
    assert (found.corrected, found.rejected, found.unlabelled) == (5, 1, 1)
    samples = {one.id: one for one in read(tmp_path / "back").samples}
    assert all(one.chosen for one in samples.values())  # nobody drew them by lot
    assert samples["column"].mask().sum() == 20
    assert same(samples["ring"].mask(), masks()["ring"])
    assert samples["touching"].mask().sum() == 19
    assert lines_of(tmp_path / "back" / "rejected.jsonl")[0]["reason"] == "marked as rejected"


def test_png_answers(labels: list[Label], tmp_path: Path) -> None:
    write_png(labels, tmp_path / "out")
    index = tmp_path / "out" / "index.csv"
    with index.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    (tmp_path / "out" / rows[2][1]).unlink()
    rows[3][6] = "Yes"
    rows[4][1] = "mine.png"
    Image.fromarray(np.dstack([masks()["ring"] * np.uint8(9)] * 3)).save(tmp_path / "out" / "mine.png")
    with index.open("w", encoding="utf-8-sig", newline="") as file:  # as a spreadsheet saves it
        csv.writer(file).writerows(rows)
    found = write_corrected(index, read_png(tmp_path / "out"), labels, tmp_path / "back")
    assert (found.corrected, found.rejected, found.unlabelled) == (5, 2, 0)
    assert same({one.id: one for one in read(tmp_path / "back").samples}["column"].mask(), masks()["ring"])


# Strangers


@pytest.mark.parametrize("name", ["../x.png", "/etc/passwd", "a/../../x.png", "C:\\x.png", "..\\x.png", ""])
def test_paths_that_lead_out_are_refused(name: str, labels: list[Label], tmp_path: Path) -> None:
    content = coco_content(labels)
    content["images"][2]["file_name"] = name
    (tmp_path / "coco.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"coco.json, image 3: .*(leads out|no usable)"):
        list(read_coco(tmp_path / "coco.json"))

    write_png(labels, tmp_path / "png")
    index = tmp_path / "png" / "index.csv"
    index.write_text(f"id,mask\nfull,{name}\n")
    with pytest.raises(InputError, match=r"index.csv, row 1: .*(leads out|no usable)"):
        list(read_png(tmp_path / "png"))

    if name:
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr("annotations/a.json", json.dumps(coco_content(labels)))
            archive.writestr(zipfile.ZipInfo(name), "x")
        with pytest.raises(InputError, match=r"x.zip: .*leads out"):
            list(read_cvat(tmp_path / "x.zip"))

    write_label_studio(labels, tmp_path / "ls")
    tasks = json.loads((tmp_path / "ls" / "tasks.json").read_text())
    tasks[2]["data"]["file_name"] = name
    (tmp_path / "ls" / "tasks.json").write_text(json.dumps(tasks))
    file = as_export(tmp_path / "ls" / "tasks.json", lambda one: one)
    if name:
        with pytest.raises(InputError, match=r"export.json, task 3: .*leads out"):
            write_corrected(file, read_label_studio(file), labels, tmp_path / "back")
    assert not (tmp_path / "back").exists()


BROKEN = [
    "", "{", "null", "[]", "7", '"x"', "[" * 100_000, '{"annotations": 3}', '{"annotations": [3], "images": []}',
    '{"annotations": [], "images": [{"id": 1}]}', '{"annotations": [], "images": [{"id": {}, "file_name": "a"}]}',
    '{"annotations": [{"id": 5}], "images": []}', '{"annotations": [], "images": []}',
    '{"images": [{"id": 1, "file_name": "a.png", "width": 1e9, "height": 3}], "annotations": []}',
    '[{"data": {}}]', '[{"data": 3, "annotations": []}]', '[{"data": {}, "annotations": [{"result": []}]}]', "[3]",
    '[{"data": {"sentence_id": "full"}, "annotations": [{"result": [{"type": "brushlabels", "value": {}}]}]}]',
    '[{"data": {"sentence_id": "full"}, "annotations": 5}]', "[{}]",
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
@pytest.mark.parametrize("kind", ["coco", "cvat", "label-studio"])
def test_broken_files(kind: str, text: str, labels: list[Label], tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_text(text)
    if kind == "cvat":
        with zipfile.ZipFile(tmp_path / "file.zip", "w") as archive:
            archive.write(file, "annotations/instances_default.json")
        file = tmp_path / "file.zip"
    reading = {"coco": read_coco, "cvat": read_cvat, "label-studio": read_label_studio}[kind]
    with pytest.raises(InputError) as error:
        write_corrected(file, reading(file), labels, tmp_path / "back")
    assert str(error.value).startswith(str(file))
    assert not (tmp_path / "back").exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6,
)  # fmt: skip


@given(
    st.sampled_from(["id", "image_id", "segmentation", "attributes", "sentence_id", "size", "counts"]), JSON,
    st.sampled_from(["", "images", "annotations"]),
)  # fmt: skip
def test_any_value_in_coco(key: str, value: Any, whole: str) -> None:
    one = Label(id="a", image="a.png", file_name="a.png", sentence="s", mask=Rle.encode(np.eye(3) > 0), score=0.5)
    content = json.loads(json.dumps(coco_content([one])))
    annotation = content["annotations"][0]
    if whole:
        content[whole] = value
    elif key in ("size", "counts"):
        annotation["segmentation"][key] = value
    else:
        annotation[key] = value
    try:
        list(corrections_of(content, "file"))
    except InputError as error:
        assert str(error).startswith("file")


@given(
    st.sampled_from(["type", "value", "original_width", "image_rotation", "rle", "points", "annotations", "result"]),
    JSON,
)
def test_any_value_in_label_studio(key: str, value: Any) -> None:
    from l2l.exchange.label_studio import corrections_of

    one = Label(id="a", image="a.png", file_name="a.png", sentence="s", mask=Rle.encode(np.eye(3) > 0), score=0.5)
    task = json.loads(json.dumps(task_of(one, "x", polygons=key == "points")))
    result = task["predictions"][0]["result"]
    task["annotations"] = [{"id": 1, "result": result}]
    if key == "annotations":
        task[key] = value
    elif key == "result":
        task["annotations"][0][key] = value
    else:
        (result[0]["value"] if key in ("rle", "points") else result[0])[key] = value
    try:
        list(corrections_of([task], "file"))
    except InputError as error:
        assert str(error).startswith("file")


@pytest.mark.parametrize(
    "content", [b"", b"id;mask\nfull;x\n", b"\xff\xfe\x00", b'id,mask\n"full', b"id,mask\nfull\n", b"id,mask\n,x.png\n",
                b"id,mask\nfull,masks\n", b"id,mask\nfull,bad.png\n", b"id,mask\nfull,j.jpg\n", b"id,mask\nno\0,x\n"],
)  # fmt: skip
def test_a_broken_png_folder(content: bytes, labels: list[Label], tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "masks").mkdir(parents=True)
    (out / "bad.png").write_bytes(b"\x89PNG nothing")
    Image.new("L", SIZE[::-1]).save(out / "j.jpg")
    (out / "index.csv").write_bytes(content)
    with pytest.raises(InputError) as error:
        write_corrected(out / "index.csv", read_png(out), labels, tmp_path / "back")
    assert str(error.value).startswith(str(out / "index.csv"))


def test_broken_zips(labels: list[Label], tmp_path: Path) -> None:
    file = tmp_path / "x.zip"
    with pytest.raises(InputError, match="no such file"):
        list(read_cvat(file))
    write_cvat(labels, file)
    whole = file.read_bytes()
    for content in (b"", b"PK", whole[:200], whole[:60] + b"\0" * 40 + whole[100:]):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"x.zip"):
            list(read_cvat(file))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(InputError, match="COCO 1.0"):
        list(read_cvat(file))


def test_what_fits_no_label(labels: list[Label], tmp_path: Path) -> None:
    content = coco_content(labels)
    content["annotations"][0]["sentence_id"] = "unheard of"
    content["annotations"][1]["segmentation"] = Rle.encode(np.ones((3, 4), bool)).to_coco()
    content["annotations"][2]["image_id"] = 1
    for key in ("sentence_id", "attributes"):
        del content["annotations"][3][key]
    file = tmp_path / "coco.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="coco.json, annotation 1: no label has the id unheard of"):
        write_corrected(file, read_coco(file), labels, tmp_path / "back")
    bad = BadRecords(skip=True)
    found = write_corrected(file, read_coco(file, bad=bad), labels, tmp_path / "back", bad=bad)
    assert (found.corrected, found.unlabelled, found.skipped) == (3, 4, 4)
    reasons = [one["reason"] for one in lines_of(tmp_path / "back" / "skipped.jsonl")]
    for words in ("unheard of", "3 x 4", "not of a.png", "no sentence_id"):
        assert any(words in one for one in reasons), words
    with pytest.raises(InputError, match="there is a data set in this folder"):
        write_corrected(file, [], labels, tmp_path / "back")


def test_sentence_ids_of_a_folder(labels: list[Label], tmp_path: Path) -> None:
    """What keeps ids intact: `metadata.jsonl` may name them."""
    with Image.open(labels[0].image) as picture:
        picture.save(tmp_path / "a.png")
    line = {"file_name": "a.png", "id": "r1", "sentences": ["one", "two"]}
    path = tmp_path / "metadata.jsonl"
    for more, expected in (({}, ("r1_0", "r1_1")), ({"sentence_ids": ["x", 7]}, ("x", "7"))):
        path.write_text(json.dumps(line | more))
        assert read(tmp_path).samples[0].sentence_ids == expected
    for wrong in ("x", ["x"]):
        path.write_text(json.dumps(line | {"sentence_ids": wrong}))
        with pytest.raises(InputError, match="metadata.jsonl, line 1"):
            read(tmp_path)


# The ranking


def some_labels(*rows: tuple[str, str, float]) -> list[Label]:
    full = Rle.encode(np.ones((2, 2), bool))
    return [
        Label(id=f"p{place}", image=name, file_name=name, sentence=sentence, mask=full, score=score)
        for place, (name, sentence, score) in enumerate(rows)
    ]


def test_three_lists(labels: list[Label], tmp_path: Path) -> None:
    found = rank(labels, next=3, trust=0.7)
    assert sorted(one.label.id for one in found) == sorted(masks())
    by = {action: [one for one in found if one.action == action] for action in ("label next", "look", "trust")}
    assert [one.rank for one in by["label next"]] == [1, 2, 3]
    assert len({one.label.file_name for one in by["label next"]}) == 3
    assert [one.label.id for one in by["trust"]] == ["noise", "touching"]
    away = [abs(one.label.score - 0.5) for one in by["look"]]
    assert len(away) == 2 and away == sorted(away)
    write_ranking(found, tmp_path / "a.csv")
    write_ranking(rank(labels, next=3, trust=0.7), tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "image", "sentence", "score", "action", "rank"]
    assert {row["sentence"] for row in rows} == set(SENTENCES)
    with pytest.raises(InputError):
        rank(labels, next=-1)


def test_an_empty_mask_is_not_trusted(labels: list[Label]) -> None:
    assert {one.label.id: one.action for one in rank(labels, next=0, trust=0.0)}["empty"] == "look"


def test_what_stands_for_many_comes_before_what_is_only_odd() -> None:
    many = [(f"{place}.png", f"the cup on shelf {place}", 0.4) for place in range(8)]
    labels = some_labels(("odd.png", "zebra", 0.3), *many)
    assert choose(labels, range(9), 1) != [0]
    chosen = choose(labels, range(9), 3)
    assert 0 in chosen  # but after a cup or two, the other cups have less left to teach


def test_no_second_pair_of_a_picture_before_each_had_its_first() -> None:
    rng = np.random.default_rng(1)
    words = ["cup", "red", "left", "big", "dog", "chair"]
    rows = [(f"{rng.integers(6)}.png", " ".join(rng.choice(words, 3)), float(rng.random())) for _ in range(40)]
    labels = some_labels(*rows)
    chosen = choose(labels, range(40), 40)
    assert sorted(chosen) == list(range(40))
    pictures = [labels[place].file_name for place in chosen]
    left = {name: sum(one.file_name == name for one in labels) for name in pictures}
    turns = dict.fromkeys(left, 0)
    for name in pictures:
        assert turns[name] == min(turns[one] for one in left if left[one] > turns[one])
        turns[name] += 1
    assert choose(labels, range(40), 7) == chosen[:7]


def test_a_sure_pair_is_not_chosen_for_its_neighbours() -> None:
    labels = some_labels(("a.png", "the cup", 1.0), ("b.png", "the cup", 0.1), ("c.png", "the cup", 0.5))
    assert choose(labels, range(3), 3)[0] == 1


# The commands


@pytest.mark.parametrize("kind", ["coco", "png", "label-studio", "cvat"])
def test_commands(kind: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, back = tmp_path / "x" / "out", tmp_path / "x" / "back"
    outline = [] if kind == "png" else ["--polygons", "--tolerance", "0.5"]
    assert run("export", str(folder), "--to", kind, "--out", str(out), "--min-score", "0.3", *outline) == 0
    assert "5 of 7 labels, in 4 pictures" in capsys.readouterr().out
    file = as_export(out / "tasks.json", lambda one: one) if kind == "label-studio" else out
    assert run("import", str(file), "--from", kind, "--labels", str(folder), "--out", str(back)) == 0
    assert "5 corrected, 0 rejected (rejected.jsonl), 2 that nobody looked at" in capsys.readouterr().out
    assert l2l_main(["data", "check", str(back)]) == 0


def test_rank_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("rank", str(folder), "--next", "2") == 0
    assert "2 to label next, 4 to look at, 1 to trust" in capsys.readouterr().out
    assert (folder / "ranking.csv").exists()


def test_rank_names_pictures_as_seen_from_here(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sets in REFER's layout know their pictures by absolute paths."""
    assert all(Path(one.image).is_absolute() for one in read_labels(folder))
    monkeypatch.chdir(folder.parent)
    assert run("rank", folder.name, "--next", "2") == 0
    first = capsys.readouterr().out.splitlines()[1]
    assert first.startswith("  pictures/") and str(folder.parent) not in first
    monkeypatch.chdir(folder)  # the pictures are not in here
    assert run("rank", str(folder), "--next", "2") == 0
    assert f"  {folder.parent}/pictures/" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more",
    [["--to", "png", "--polygons"], ["--to", "coco", "--tolerance", "1"], ["--to", "coco", "--no-pictures"],
     ["--to", "hub", "--address", "x"], ["--to", "coco", "--min-score", "2"]],
)  # fmt: skip
def test_options_that_do_not_go_together(more: list[str], folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        run("export", str(folder), "--out", str(tmp_path / "out"), *more)


def test_help_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    from l2l.cli import Parser

    top = Parser(prog="l2l")
    commands.add(top.add_subparsers(dest="command", required=True, parser_class=Parser))
    for name in ("rank", "export", "import"):
        with pytest.raises(SystemExit):
            top.parse_args([name, "--help"])
        assert f"examples:\n  l2l {name}" in capsys.readouterr().out


def test_a_missing_picture_is_named(folder: Path, tmp_path: Path) -> None:
    (folder.parent / "pictures" / "d.jpg").unlink()
    labels = read_labels(folder)
    for write in (write_hub, write_cvat, write_label_studio):
        with pytest.raises(InputError, match=r"d.jpg.*--images"):
            write(labels, tmp_path / "out" / "x")  # type: ignore[operator]


def test_training_goes_on(tmp_path: Path) -> None:
    """Train, label, correct, and train on what was corrected beside what there was."""
    world = make_world(tmp_path)
    assert l2l_main(train_arguments(world, world / "run", steps=2)) == 0
    labelled = label(stir(world / "run"), world / "labels", batch=8)
    before = read_labels(labelled.parent)
    write_coco(before[:6], tmp_path / "coco.json")
    data, back = str(world / "data"), tmp_path / "back"
    assert run("import", str(tmp_path / "coco.json"), "--from", "coco", "--labels", str(labelled), "--out", str(back),
               "--also", data) == 0  # fmt: skip
    found, old = read(back), read(data)
    ids = [key for one in found.samples for key in one.sentence_ids]
    assert {one.id for one in before[:6]} <= set(ids) and len(set(ids)) == len(ids)
    assert {one.id for one in found.split("val")} == {one.id for one in old.split("val")}
    assert l2l_main(["data", "check", str(back)]) == 0
    more = ["--data", str(back), "--rate", "1", "--unlabelled", str(back / "unlabelled.jsonl")]
    arguments = train_arguments(world, world / "again", steps=2)
    priors = arguments.index("--prior")
    arguments = [*arguments[:priors], *arguments[priors + 2 :]]
    assert l2l_main([*arguments, *more]) == 0
    assert l2l_main(["evaluate", str(world / "again")]) == 0


def test_config_fits_what_is_read() -> None:
    assert {"nothing there", "reject", "referent"} <= {
        one.get("value") for one in ElementTree.fromstring(CONFIG).iter()
    }
