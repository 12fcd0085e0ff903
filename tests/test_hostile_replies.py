"""Replies of models that are made to stop the reader, servers that answer nonsense, models that bring code along."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from l2l.priors.answers import DIALECTS, MOST, read
from l2l.priors.prior import Prior
from l2l.sample import Sample

LENGTH = 100_000
PIECES = {
    "brackets": ("", "["), "braces": ("", "{"), "spaces between corners": ("[1,1]", " "), "corners": ("", "[1 ,1 ] "),
    "point tags": ("", '<point x="1" '), "one point tag": ("<point ", 'x="1" '),
    "point without end": ("<point x=", '"1'),
    "digits": ("(", "1"), "digits and dots": ("(", "1."), "loc tokens": ("", "<loc_1> "),
    "spaces in loc": ("<loc_1>", " "),
    "commas": ("[", ","), "commas and spaces": ("[1", ",    "), "dots": ("", "."), "quotes": ('{"', "{"),
    "both": ("", '{"'), "far apart": ("", "{" + " " * 50),
    "fence never closed": ("```json\n", '[{"bbox_2d": [1,2,3,4]},'),
    "escapes": ('{"', "\\"), "minus": ("(", "-"), "spaces": ("", " "), "text in quotes": ('[{"', "a"),
    "half a surrogate": ("", "\ud800"), "boxes": ("[", "[1,2,3,4],"), "no": ("", "no "), "pairs": ("", '{"a":[1,2],'),
}  # fmt: skip


@pytest.mark.parametrize("name", PIECES)
def test_no_reply_takes_long(name: str) -> None:
    start, piece = PIECES[name]
    text = start + piece * (LENGTH // len(piece))
    for dialect in DIALECTS.values():
        for one in (text, text + "x", "x " + text + ")]}"):
            began = time.process_time()
            assert isinstance(read(one, dialect, (100, 100)), Prior)
            assert time.process_time() - began < 1, (name, dialect.name)


@pytest.mark.parametrize(
    "text",
    [
        "[NaN, Infinity, -Infinity, 1e999]", "[1, 2, 3, " + "9" * LENGTH + "]", "(1, 2), (3, " + "9" * 10_000 + ")",
        "[2, 0, 2.0000000000000004, 5e-324]", "[-1e308, -1e308, 1e308, 1e308]", "[5, 5, 5, 5]", "[9, 9, 1e9, 1e9]",
        '{"bbox_2d": [1, 2, 3, {"a": []}], "score": 1e999}', '{"box": "' + "1," * 50 + '"}', "[true, false, 1, 2]",
        '{"boxes": [[1, 2, 3, 4]], "scores": [NaN, 2, {}]}', '{"points": [[1e999, 1], [[]], null, "x"]}', "null",
    ],
    ids=range(13),
)  # fmt: skip
def test_numbers_that_are_none(text: str) -> None:
    for dialect in DIALECTS.values():
        found = read(text, dialect, (10, 10))
        assert found.to_json() == Prior.from_json(json.loads(json.dumps(found.to_json()))).to_json()


def test_thousands_of_boxes_and_digits_of_all_scripts() -> None:
    many = read("[" + ",".join(["[1, 2, 30, 40]"] * 5000) + "]", DIALECTS["plain"], (10, 10))
    assert len(many.boxes) <= MOST
    digits = read("(\u0661,\u0662),(\u0667,\u0668)", DIALECTS["pixels"], (10, 10))
    assert digits.boxes in ((), ((0.1, 0.2, 0.7, 0.8),))


@pytest.mark.parametrize("choices", [{"a": 1}, "text", 5, [], [None], [5], [{"message": 1}], None])
def test_an_endpoint_that_answers_nonsense(choices: Any, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    from l2l.priors.endpoint import Endpoint

    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    asked = Endpoint(url="http://127.0.0.1:9/v1", model="m", dialect="plain")
    given = SimpleNamespace(create=lambda **_: SimpleNamespace(choices=choices))
    asked._client = SimpleNamespace(chat=SimpleNamespace(completions=given))  # type: ignore[assignment]
    sample = Sample(id="1", image=str(tmp_path / "a.png"), image_id="1", size=(8, 8), sentences=("it",),
                    sentence_ids=("1",))  # fmt: skip
    (found,) = asked.answer([(sample, "it")])
    assert found is not None and found.empty and found.note


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from l2l.errors import InputError
    from l2l.pretrained import Pretrained

    config = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
                                     vocab_size=9)  # fmt: skip
    transformers.BertModel(config).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "it", "a", "b", "c"]))
    trace = tmp_path / "trace"
    (tmp_path / "own.py").write_text(f"open({str(trace)!r}, 'w').close()\nfrom transformers import BertConfig as Own\n")
    told = json.loads((tmp_path / "config.json").read_text())
    own = {"AutoConfig": "own.Own", "AutoModel": "own.Own", "AutoTokenizer": ["own.Own", None]}
    for kind in ("bert", "not-known"):
        (tmp_path / "config.json").write_text(json.dumps(told | {"auto_map": own, "model_type": kind}))
        (tmp_path / "tokenizer_config.json").write_text(
            json.dumps({"auto_map": own, "tokenizer_class": "BertTokenizer" if kind == "bert" else "Own"})
        )
        model = Pretrained(str(tmp_path), asked_by="--source mllm")
        for use in (lambda one: one.config, lambda one: one.tokenizer, lambda one: one.read("BertModel")):
            try:
                use(model)
            except InputError:
                assert kind != "bert"
        assert not trace.exists()


def test_weights_that_are_a_pickle_call_nothing(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import pickle

    from l2l.errors import InputError
    from l2l.pretrained import Pretrained

    config = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
                                     vocab_size=9)  # fmt: skip
    config.save_pretrained(tmp_path)
    trace = tmp_path / "trace"

    class Call:
        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            return Path.touch, (trace,)

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Call()}, protocol=2))
    with pytest.raises(InputError):
        Pretrained(str(tmp_path)).read("BertModel")
    assert not trace.exists()


def test_the_source_trusts_no_remote_code() -> None:
    import l2l

    found = [line.strip() for path in Path(l2l.__file__).parent.rglob("*.py") for line in path.open(encoding="utf-8")
             if "trust_remote_code" in line]  # fmt: skip
    assert found == ['self._asked = {"trust_remote_code": False, **here}']
