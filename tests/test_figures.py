"""The figures that the README and docs/results.md lead with are those of the cells, to the last digit shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from l2l.benchmark_page import gather, mean_sd, miou, read_cells
from l2l.benchmark_suites import SUITES

ROOT = Path(__file__).parents[1]
NAMES = {
    "prior alone": "prior_only", "prior alone (simulated)": "prior_only", "labels alone": "supervised",
    "training on the prior": "prior_training", "FixMatch": "fixmatch", "Mean Teacher": "mean_teacher",
    "RESMatch": "resmatch", "DAM-Net": "dam_net", "SemiRES": "semires",
    "SemiRES, with / without the prior": "semires", "L2L": "l2l", "full supervision": "fully_supervised",
}  # fmt: skip
SCENES = ["scenes: 1 %, prior", "scenes: 1 %, no_prior", "scenes: 5 %, prior", "scenes: 5 %, no_prior"]
PAIRS = ["scenes: 1 %", "scenes: 5 %", "fashion: 1 %", "fashion: 5 %"]


def tables(page: str, row: str) -> list[dict[str, list[str]]]:
    """The tables of a page that have this row, each as row to cells, without stars."""
    found: list[dict[str, list[str]]] = []
    for text in re.findall(r"(?:^\|.*\|\n)+", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE):
        lines = [[part.strip(" *") for part in line.strip("|").split("|")] for line in text.splitlines()]
        found.append({first: rest for first, *rest in lines})
    return [one for one in found if row in one]


@pytest.fixture(scope="module")
def reached() -> dict[tuple[str, str, str], list[float]]:
    """Percent by seed of (row, suite and column, how): with the prior, without it."""
    suites = [suite for suite in SUITES if suite.name in ("scenes", "fashion")]
    results = read_cells(suites, ROOT / "results" / "benchmark")
    out: dict[tuple[str, str, str], list[float]] = {}
    for suite in suites:
        for how in ("prior", "no_prior"):
            for (row, column), seeds in gather(suite, results, miou(how)).items():
                out[row, f"{suite.name}: {column}", how] = [100 * seeds[seed] for seed in sorted(seeds)]
    return out


def same(shown: str, values: list[float], where: str) -> None:
    """`shown` is "64.3", "64.3 ± 1.4 (3)", or one figure for each seed."""
    mean, sd = mean_sd(values)
    told = re.sub(r" \((one seed|seed 0)\)", "", shown)
    if found := re.fullmatch(r"([\d.]+)(?: ± ([\d.]+))?(?: \((\d+)\))?", told):
        assert found[1] == f"{mean:.1f}", where
        assert found[2] in (None, f"{sd:.1f}") and found[3] in (None, str(len(values))), where
    else:
        assert told == " ".join(f"{one:.1f}" for one in values), where


@pytest.mark.parametrize(("page", "row", "at"), [("README.md", "FixMatch", 0), ("docs/results.md", "RESMatch", 0)])
def test_drawn_scenes(page: str, row: str, at: int, reached: dict[tuple[str, str, str], list[float]]) -> None:
    for name, shown in tables(page, row)[at].items():
        for place, text in zip(SCENES, shown, strict=True):
            column, how = place.split(", ")
            if name in NAMES and text:
                same(text, reached[NAMES[name], column, how], f"{page}: {name}, {place}")


@pytest.mark.parametrize(("row", "at", "columns"), [
    ("SemiRES, with / without the prior", 0, PAIRS), ("DAM-Net", 1, ["fashion: 5 %", "fashion: 1 %"]),
])  # fmt: skip
def test_photographs(row: str, at: int, columns: list[str], reached: dict[tuple[str, str, str], list[float]]) -> None:
    checked = 0
    for name, shown in tables("docs/results.md", row)[at].items():
        for column, text in zip(columns, shown, strict=True):
            if name not in NAMES or not text:
                continue
            for how, part in zip(("prior", "no_prior"), re.sub(r" \(.*\)", "", text).split(" / "), strict=False):
                same(part, reached[NAMES[name], column, how], f"{name}, {column}, {how}")
                checked += 1
    assert checked > 10
