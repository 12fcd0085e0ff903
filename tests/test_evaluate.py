from __future__ import annotations

import json
from pathlib import Path

import pytest

from l2l.evaluate import Evaluation, PairScore
from l2l.metrics import calibration, summarise

RESULTS = Path(__file__).parents[1] / "results"


def made(pairs: list[PairScore], **more: object) -> Evaluation:
    scores = summarise([one.intersection for one in pairs], [one.union for one in pairs])
    return Evaluation("l2l", "data", "val", "prior", False, scores, tuple(pairs), **more)  # type: ignore[arg-type]


def test_an_evaluation_comes_back_from_its_file() -> None:
    pairs = [PairScore("a", 3, 4, 0.7, 0.6, 0.5), PairScore("b", 0, 9, 0.2), PairScore("c", 1, 2, 0.5, 0.4, 0.0)]
    one = made(pairs, run="0123abcd", step=300, weights="feed")
    text = json.dumps(one.to_json(), allow_nan=False)
    assert Evaluation.from_json(json.loads(text)) == one
    assert one.calibration == calibration([0.7, 0.2, 0.5], [0.75, 0, 0.5])
    assert one.rho_calibration == calibration([0.6, 0.4], [0.5, 0.0])
    assert json.loads(text)["calibration"]["ece"] == pytest.approx(one.calibration.ece, abs=1e-6)


def test_files_of_older_versions_are_read() -> None:
    value = made([PairScore("a", 3, 4, 0.7, 0.6, 0.5), PairScore("b", 0, 9, 0.2, 0.1, 0.1)], run="x", step=3).to_json()
    for name in ("run", "step", "weights", "calibration", "rho_calibration"):
        del value[name]
    value["pairs"] = [row[:4] for row in value["pairs"]]
    old = Evaluation.from_json(value)
    assert (old.run, old.step, old.weights, old.rho_calibration) == ("", 0, "", None)
    assert [pair.iou for pair in old.pairs] == [0.75, 0] and old.calibration.n == 2


def test_a_row_of_another_length_is_damage() -> None:
    value = made([PairScore("a", 3, 4, 0.7)]).to_json()
    for row in (["a", 3, 4], ["a", 3, 4, 0.7, 0.6, 0.5, 0.4]):
        with pytest.raises(TypeError):
            Evaluation.from_json(value | {"pairs": [row]})


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/*/evaluations/*.json"))[:6], ids=lambda path: path.stem)
def test_the_evaluations_of_the_repository_are_read(path: Path) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    one = Evaluation.from_json(value)
    assert one.scores.to_json() == pytest.approx(value["scores"]) and 0 <= one.calibration.ece <= 1
