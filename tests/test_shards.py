from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sharded import files_of, make_shards

import l2l
from l2l.cli import main
from l2l.data.images import load
from l2l.data.shards import Packed, read_shard, shard_files, write_shards
from l2l.data.webdataset import read_tar, write_tar
from l2l.errors import BadRecords, InputError
from l2l.label import label
from l2l.priors.grounder import Grounder
from l2l.priors.precomputed import Precomputed
from l2l.priors.prior import Prior
from l2l.rle import Rle
from l2l.sample import Sample
from l2l.scale.engine import run_shards
from l2l.scale.label_shards import label_shards
from l2l.scale.one_shard import MOST_ATTEMPTS, do_shard
from l2l.scale.prior_shards import prior_shards

FORMATS = ["wds", "parquet"]


def png(height: int, width: int, level: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (level, 0, 0)).save(out, "PNG")
    return out.getvalue()


def jpeg() -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    Image.fromarray(noise).save(out, "JPEG")
    return out.getvalue()


def told(sample: Sample) -> Sample:
    """What a shard keeps: all but where the picture and the record were."""
    return dataclasses.replace(sample, image="", provenance="")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    l2l.write_scenes(folder / "data", count=20, seed=3)
    (folder / "data" / "images" / "photo.jpg").write_bytes(jpeg())
    return folder / "data"


@pytest.mark.parametrize("form", FORMATS)
def test_a_round_trip(drawn: Path, tmp_path: Path, form: Any) -> None:
    data = l2l.read(drawn)
    index = write_shards(data, tmp_path / "a", format=form, per_shard=10)
    files = shard_files(tmp_path / "a")
    assert [row["file"] for row in index["shards"]] == [path.name for path in files] and len(files) > 2
    got = [pair for path in files for pair in read_shard(path)]
    assert sorted(map(repr, map(told, data.samples))) == sorted(repr(told(sample)) for sample, _ in got)
    known = {sample.id: Path(sample.image).read_bytes() for sample in data.samples}
    assert all(picture == known[sample.id] for sample, picture in got)
    assert index["pairs"] == sum(len(sample.sentences) for sample in data.samples)
    write_shards(data, tmp_path / "b", format=form, per_shard=10)
    write_shards(data, tmp_path / "b", format=form, per_shard=10)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@pytest.mark.parametrize("form", FORMATS)
def test_drawn_scenes_and_pictures_of_other_kinds(tmp_path: Path, form: Any) -> None:
    scenes = l2l.read("scenes", scenes_count=2)
    write_shards(scenes, tmp_path / "scenes", format=form)
    for (sample, picture), of in zip(read_shard(shard_files(tmp_path / "scenes")[0]), scenes.samples, strict=True):
        assert np.array_equal(np.array(Image.open(io.BytesIO(picture))), load(of.image)) and told(sample) == told(of)
    Image.new("RGB", (9, 7), "red").save(tmp_path / "a.webp", lossless=True)
    (tmp_path / "b.jpg").write_bytes(jpeg())
    (tmp_path / "pairs.jsonl").write_text("".join(
        json.dumps({"image": name, "sentence": "it"}) + "\n" for name in ("a.webp", "b.jpg")))  # fmt: skip
    write_shards(l2l.read(tmp_path / "pairs.jsonl"), tmp_path / "other", format=form)
    (first, one), (second, two) = read_shard(shard_files(tmp_path / "other")[0])
    assert Image.open(io.BytesIO(one)).format == "PNG" and first.size == (7, 9) and first.image.endswith(".png")
    assert two == jpeg() and second.size == (48, 64) and second.image.endswith(".jpg") and second.targets is None


def test_webdataset_reads_the_tars(drawn: Path, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    data = l2l.read(drawn)
    write_shards(data, tmp_path, per_shard=1000)
    found = list(wds.WebDataset(str(shard_files(tmp_path)[0]), shardshuffle=False).decode("pil"))
    assert len(found) == len({sample.image for sample in data.samples})
    assert sum(len(one["json"]["refs"]) for one in found) == len(data.samples)
    assert all(one["png"].mode == "RGB" for one in found)


def test_datasets_would_open_the_parquet(drawn: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    data = l2l.read(drawn)
    write_shards(data, tmp_path, format="parquet", per_shard=1000)
    table = parquet.read_table(shard_files(tmp_path)[0])
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"} and list(features) == table.column_names
    assert [field.name for field in table.schema.field("image").type] == ["bytes", "path"]
    rows = table.to_pylist()
    assert [row["masks"] is None for row in rows] == [row["id"] in unknown(data) for row in rows]
    assert all(Rle.from_coco(mask).decode().any() for row in rows for mask in row["masks"] or ())


def unknown(data: Any) -> set[str]:
    return {sample.id for sample in data.samples if sample.targets is None}


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
masks = st.none() | st.lists(st.integers(0, 2**12 - 1), max_size=2)


@given(st.lists(st.tuples(st.lists(words, min_size=1, max_size=3), masks, st.booleans()), min_size=1, max_size=6))
def test_whatever_is_said(records: list[tuple[list[str], list[int] | None, bool]]) -> None:
    from l2l.data.parquet import read_parquet, write_parquet

    samples, groups = [], []
    for number, (sentences, known, new) in enumerate(records):
        targets = None if known is None else tuple(
            Rle.encode(np.array([bits >> at & 1 for at in range(12)], bool).reshape(3, 4)) for bits in known)
        samples.append(Sample(
            id=f"r{number}", image="", image_id=f"{number}", size=(3, 4), sentences=tuple(sentences), targets=targets,
            sentence_ids=tuple(f"{number}-{at}" for at in range(len(sentences))), split="val" if new else "train",
            chosen=new,
        ))  # fmt: skip
        groups.append(Packed(f"{number:08d}.png", png(3, 4), (samples[-1],)))
    for write, read in ((write_tar, read_tar), (write_parquet, read_parquet)):
        bad = BadRecords()
        got = [told(sample) for sample, _ in read(Path("x"), write(groups), bad)]
        assert got == samples


@given(st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=600)), min_size=1, max_size=3))
def test_damage_is_named_and_costs_only_what_it_hits(damage: list[tuple[float, bytes]]) -> None:
    samples = [Sample(id=f"r{number}", image="", image_id=f"{number}", size=(3, 4), sentences=("it",),
                      sentence_ids=(f"{number}",)) for number in range(8)]  # fmt: skip
    whole = write_tar([Packed(f"{number:08d}.png", png(3, 4), (one,)) for number, one in enumerate(samples)])
    content = bytearray(whole)
    for share, junk in damage:
        at = int(share * (len(content) - len(junk)))
        content[at : at + len(junk)] = junk
    bad, got = BadRecords(skip=True), []
    try:
        got = list(read_shard(Path("x.tar"), content=bytes(content), bad=bad))
    except InputError as error:
        assert "no tar file" in str(error)
        return
    assert len(got) == len(samples) or bad.found  # nothing goes without a word
    hit = sum(len(junk) // 512 + 2 for _, junk in damage)  # blocks; a record has four, and its neighbour may go too
    assert len(got) >= len(samples) - 2 * hit


def test_a_damaged_header_in_the_middle(drawn: Path, tmp_path: Path) -> None:
    write_shards(l2l.read(drawn), tmp_path, per_shard=1000)
    path = shard_files(tmp_path)[0]
    whole, content = list(read_shard(path)), bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        third = tar.getmembers()[4]  # a picture and its JSON each
    for junk in (b"\xff" * 512, b"\0" * 512):
        content[third.offset : third.offset + 512] = junk
        bad = BadRecords(skip=True)
        got = list(read_shard(path, content=bytes(content), bad=bad))
        lost = [pair for pair in whole if pair[0].image.endswith("00000002.png")]
        assert got == [pair for pair in whole if pair not in lost] and lost
        assert bad.found[0].record == f"byte {third.offset}" and "are lost" in bad.found[0].reason
    with pytest.raises(InputError, match="are lost"):
        list(read_shard(path, content=bytes(content)))


def test_a_damaged_parquet(drawn: Path, tmp_path: Path) -> None:
    write_shards(l2l.read(drawn), tmp_path, format="parquet", per_shard=1000)
    path = shard_files(tmp_path)[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 0xFF
    bad = BadRecords(skip=True)
    assert list(read_shard(path, content=bytes(content), bad=bad)) == []
    assert bad.found[0].record.startswith("rows 0 to") and bad.found[0].reason.startswith("damaged")
    with pytest.raises(InputError, match="no whole parquet file"):
        list(read_shard(path, content=bytes(content[:-9])))


def test_bad_records_are_named() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in (
            ("a.png", png(3, 4)), ("a.json", b'{"sentence": "it"}'), ("b.png", png(3, 4)), ("c.png", b"no picture"),
            ("c.json", b'{"sentence": "it"}'), ("d.jpg", jpeg()), ("d.json", b"{"), ("e.png", png(3, 4)),
            ("e.json", b'{"id": "a", "sentence": "again"}'), ("f.png", png(3, 4)),
            ("f.json", b'{"refs": [{"sentence": " "}, 7, {"sentences": ["x", "y"], "masks": []}]}'),
        ):  # fmt: skip
            member = tarfile.TarInfo(f"in/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    bad = BadRecords(skip=True)
    got = list(read_shard(Path("x.tar"), content=out.getvalue(), bad=bad))
    assert [(sample.id, sample.sentence_ids, sample.targets) for sample, _ in got] == [
        ("in/a", ("in/a",), None), ("a", ("a",), None), ("in/f_2", ("in/f_2_0", "in/f_2_1"), ()),
    ]  # fmt: skip
    assert [one.record for one in bad.found] == ["in/b", "in/c", "in/d", "in/f_0", "in/f_1"]
    assert all("0x" not in one.reason for one in bad.found)  # no address, or two reads would differ


def test_what_is_refused(drawn: Path, tmp_path: Path) -> None:
    data = l2l.read(drawn)
    write_shards(data, tmp_path, per_shard=10)
    with pytest.raises(InputError, match="holds other shards"):
        write_shards(data, tmp_path, per_shard=1000)
    with pytest.raises(InputError, match="0 pairs in a shard"):
        write_shards(data, tmp_path / "none", per_shard=0)
    shard_files(tmp_path)[1].unlink()
    with pytest.raises(InputError, match="1 shards are missing, the first pairs-000001.tar"):
        shard_files(tmp_path)
    with pytest.raises(InputError, match="no shards here"):
        shard_files(drawn)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_shards(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def labels(made: tuple[Path, Path]) -> Path:
    run, shards = made
    assert label_shards(run, shards, run.parent / "labels", no_prior=True)["finished"]
    return run.parent / "labels"


def lines_of(folder: Path, kind: str = "labels") -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob(f"{kind}-*.jsonl")) for line in path.open()]


def test_lines_are_those_of_label(made: tuple[Path, Path], labels: Path, tmp_path: Path) -> None:
    run, _ = made
    pairs = run.parent / "data" / "unlabelled.jsonl"
    write_shards(l2l.read(pairs), tmp_path / "one", format="parquet", per_shard=10**6)
    label_shards(run, tmp_path / "one", tmp_path / "labels", no_prior=True)
    alone = [json.loads(line) for line in label(run, tmp_path / "alone", data=pairs, no_prior=True).open()]
    mine = lines_of(tmp_path / "labels")
    assert len(mine) == len(alone) and any(line["bbox"][2] for line in mine)
    for line in (*mine, *alone):
        line["image"] = ""
    assert mine == alone
    assert {line["id"] for line in lines_of(labels)} == {line["id"] for line in alone}


def test_a_second_call_does_nothing(made: tuple[Path, Path], labels: Path) -> None:
    run, shards = made
    before = {path: path.stat().st_mtime_ns for path in labels.glob("labels-*")}
    seen: list[int] = []
    about = label_shards(run, shards, labels, no_prior=True, progress=lambda done, total: seen.append(done))
    assert about["done"] == 0 and about["kept"] == about["shards"] == len(seen)
    assert {path: path.stat().st_mtime_ns for path in labels.glob("labels-*")} == before
    with pytest.raises(InputError, match="made with another everything; choose another folder"):
        label_shards(run, shards, labels, no_prior=True, everything=True)


def test_what_was_spoilt_is_done_again(made: tuple[Path, Path], labels: Path, tmp_path: Path) -> None:
    run, shards = made
    whole = files_of(labels)
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "labels-pairs-000001.jsonl").write_bytes(whole["labels-pairs-000001.jsonl"][:-7])
    (tmp_path / "labels-pairs-000002.receipt.json").unlink()
    (tmp_path / "labels-pairs-000003.jsonl").unlink()
    (tmp_path / "labels-pairs-000004.receipt.json").write_text("[]")
    (tmp_path / "labels-pairs-000004.jsonl.0.draft").write_bytes(b"half")
    assert label_shards(run, shards, tmp_path, no_prior=True)["done"] == 4
    assert files_of(tmp_path) == whole


@pytest.mark.parametrize("when", range(2, 9))
def test_cut_off_at_any_rename(
    made: tuple[Path, Path], labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    run, shards = made
    calls, replace = [0], os.replace

    def stop(source: Any, target: Any) -> None:
        calls[0] += 1
        if calls[0] == when and when % 2:
            raise KeyboardInterrupt
        replace(source, target)
        if calls[0] == when:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", stop)
        label_shards(run, shards, tmp_path, no_prior=True)
    assert not json.loads((tmp_path / "about.json").read_text())["finished"]
    assert label_shards(run, shards, tmp_path, no_prior=True)["finished"]
    assert files_of(tmp_path) == files_of(labels)


CHILD = """
import os, sys, time
import l2l.data.durable as durable
from l2l.scale.label_shards import label_shards
replace = os.replace
def slow(source, target):
    print(target, flush=True)
    time.sleep(0.2)
    replace(source, target)
durable.os.replace = slow
label_shards(sys.argv[1], sys.argv[2], sys.argv[3], no_prior=True)
"""


def test_killed_with_sigkill(made: tuple[Path, Path], labels: Path, tmp_path: Path) -> None:
    run, shards = made
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(run), str(shards), str(tmp_path)],
                             stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert child.stdout is not None
    for line in child.stdout:
        if line.strip().endswith("labels-pairs-000002.jsonl"):  # its draft is written, its rename is to come
            os.kill(child.pid, signal.SIGKILL)
            break
    child.stdout.close()
    assert child.wait() == -signal.SIGKILL
    assert len(list(tmp_path.glob("labels-*.receipt.json"))) == 2 and list(tmp_path.glob("*.draft"))
    about = label_shards(run, shards, tmp_path, no_prior=True)
    assert about["kept"] == 2 and about["finished"]
    assert files_of(tmp_path) == files_of(labels)
    ids = [line["id"] for line in lines_of(tmp_path)]
    assert len(ids) == len(set(ids)) == about["pairs"]


def test_a_changed_shard_is_done_again(made: tuple[Path, Path], tmp_path: Path) -> None:
    run, shards = made
    for path in shard_files(shards)[:2]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    label_shards(run, tmp_path, tmp_path / "out", no_prior=True)
    first = tmp_path / "pairs-000000.tar"
    first.write_bytes(shard_files(shards)[2].read_bytes())
    about = label_shards(run, tmp_path, tmp_path / "out", no_prior=True)
    assert about["done"] == 1 and about["kept"] == 1


def test_bad_pictures_and_bad_shards(made: tuple[Path, Path], tmp_path: Path) -> None:
    run, shards = made
    files = shard_files(shards)
    good = list(read_shard(files[0]))
    cut = good[-1][1][: len(good[-1][1]) // 2]  # the header is whole, the pixels are not
    packed = [Packed("a.png", good[0][1], (good[0][0],)), Packed("b.png", cut, (good[-1][0],))]
    (tmp_path / "one.tar").write_bytes(write_tar(packed))
    (tmp_path / "three.tar").write_bytes(b"not a tar")
    (tmp_path / "two.tar").write_bytes(files[1].read_bytes())
    assert main(["label", str(run), "--shards", str(tmp_path), "--out", str(tmp_path / "out"), "--no-prior"]) == 1
    about = json.loads((tmp_path / "out" / "about.json").read_text())
    assert not about["finished"] and list(about["failed"]) == ["three.tar"] and about["skipped"] == 1
    aside = json.loads((tmp_path / "out" / "skipped.jsonl").read_text())
    assert aside["file"] == "one.tar" and aside["record"] == "one.tar, b" and "truncated" in aside["reason"]
    assert {line["id"] for line in lines_of(tmp_path / "out")} >= set(good[0][0].sentence_ids)


def test_priors_of_shards_guide_the_labels(made: tuple[Path, Path], tmp_path: Path) -> None:
    run, shards = made
    assert main(["prior", "--shards", str(shards), "--out", str(tmp_path / "priors")]) == 0
    lines = lines_of(tmp_path / "priors", "priors")
    samples = [sample for sample in l2l.read(run.parent / "data" / "unlabelled.jsonl").samples]
    asked = Grounder().answer([(sample, sample.sentences[0]) for sample in samples])
    mine = {line["id"]: Prior.from_json(line) for line in lines}
    assert mine == {sample.id: prior for sample, prior in zip(samples, asked, strict=True)}
    with pytest.raises(InputError, match="the run's own prior knows other pairs"):
        label_shards(run, shards, tmp_path / "labels")
    about = label_shards(run, shards, tmp_path / "labels", prior=tmp_path / "priors")
    assert about["finished"] and about["pairs_with_prior"] == sum(not prior.empty for prior in asked)

    store = l2l.make_priors(l2l.read(run.parent / "data" / "unlabelled.jsonl"), tmp_path / "store")
    store.close()
    label_shards(run, shards, tmp_path / "by-store", prior=tmp_path / "store")  # pictures are known by their bytes
    assert lines_of(tmp_path / "labels") == lines_of(tmp_path / "by-store")

    file = tmp_path / "priors" / "priors-pairs-000001.jsonl"
    told = Precomputed(file)
    line = json.loads(file.read_text().splitlines()[0])
    one = dataclasses.replace(samples[0], image=str(tmp_path / "priors" / line["image"]), sentences=(line["sentence"],))
    assert told.answer([(one, line["sentence"])])[0].boxes == Prior.from_json(line).boxes
    file.write_bytes(file.read_bytes()[:-5])
    about = label_shards(run, shards, tmp_path / "again", prior=tmp_path / "priors")
    assert list(about["failed"]) == ["pairs-000001.tar"] and "damaged" in about["failed"]["pairs-000001.tar"]


class Moody:
    """Gives no answer to every third question while `mood` is bad, and refuses from some point on."""

    name, mood, refuses, asked = "moody", True, 10**6, 0

    def fingerprint(self) -> str:
        return "moody-1"

    def answer(self, pairs: Sequence[tuple[Sample, str]]) -> list[Prior | None]:
        found: list[Prior | None] = []
        for _ in pairs:
            Moody.asked += 1
            if Moody.asked > Moody.refuses:
                raise InputError("no more")
            said = Prior(boxes=((0.0, 0.0, 0.5, 0.5),), scores=(0.5,))
            found.append(None if self.mood and Moody.asked % 3 == 0 else said)
        return found


def test_what_got_no_answer_is_asked_again_and_nothing_else(made: tuple[Path, Path], tmp_path: Path) -> None:
    _, shards = made
    pairs = sum(len(sample.sentences) for path in shard_files(shards) for sample, _ in read_shard(path))
    Moody.mood, Moody.asked = True, 0
    about = prior_shards(Moody, shards, tmp_path / "a", batch=2)
    assert not about["finished"] and about["missed"] == pairs // 3 and about["pairs"] == pairs - pairs // 3
    Moody.mood, Moody.asked = False, 0
    again = prior_shards(Moody, shards, tmp_path / "a", batch=2)
    assert again["finished"] and again["pairs"] == pairs and Moody.asked == about["missed"]
    Moody.asked, Moody.refuses = 0, 3
    about = prior_shards(Moody, shards, tmp_path / "b", batch=2)
    assert len(about["failed"]) == about["shards"] - 1 and about["pairs"] == 2  # the batch that was answered is kept
    Moody.refuses = 10**6
    assert prior_shards(Moody, shards, tmp_path / "b", batch=2)["finished"]
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_shard_that_kills_is_given_up(made: tuple[Path, Path], tmp_path: Path) -> None:
    class Deadly:
        kind, threads, device, settings = "labels", 1, "cpu", {"version": 1}

        def inputs(self, shard: Path, digest: str) -> dict[str, str]:
            return {}

        def load(self) -> Any:
            def work(*given: Any) -> Any:
                raise KeyboardInterrupt  # as if killed: nothing of ours runs after it

            return work

    _, shards = made
    job, shard = Deadly(), shard_files(shards)[0]
    for _ in range(MOST_ATTEMPTS):
        with pytest.raises(KeyboardInterrupt):
            do_shard(job, job.load(), shard, tmp_path)
    row = do_shard(job, job.load(), shard, tmp_path)
    assert row["state"] == "failed" and "died" in row["reason"]
    with pytest.raises(KeyboardInterrupt):  # another call tries again
        run_shards(job, shards, tmp_path)


@pytest.mark.parametrize(("more", "said"), [
    (["--workers", "2"], "with --engine ray only"), (["--data", "x"], "--shards says what the pairs are"),
    (["--device", "nowhere"], "cannot be used"),
])  # fmt: skip
def test_mistakes(made: tuple[Path, Path], tmp_path: Path, capsys: Any, more: list[str], said: str) -> None:
    run, shards = made
    given = ["label", str(run), "--shards", str(shards), "--out", str(tmp_path), "--no-prior"]
    assert main([*given, *more]) == 2 and said in capsys.readouterr().err
    assert main(["label", str(run), "--out", str(tmp_path), "--workers", "2"]) == 2
    assert main(["prior", "--out", str(tmp_path)]) == 2
    assert main(["prior", "--shards", str(shards), "--source", "simulated", "--out", str(tmp_path)]) == 2
