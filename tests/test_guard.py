"""The drift guard: sound loops are left alone, drifting ones are stopped, and too few labels are called too few."""

from __future__ import annotations

import math

import pytest

from l2l.labelling.guard import DriftGuard, Evidence, Verdict
from l2l.labelling.sesm import BOTH, MODEL, PRIOR


def watched(guard: DriftGuard, evidence: Evidence, steps: int = 80) -> tuple[Verdict, list[str]]:
    verdicts = [guard.look(evidence) for _ in range(steps)]
    return verdicts[-1], [one.event for one in verdicts if one.event]


def test_a_sound_loop_is_left_alone() -> None:
    verdict, events = watched(DriftGuard(honest=True, refs=40), Evidence(0.5, 0.4, 0.55, 0.7))
    assert (verdict.voice, verdict.weight, events) == (BOTH, 1.0, [])


@pytest.mark.parametrize(("evidence", "voice"), [
    (Evidence(0.6, 0.3, 0.4, 0.6), PRIOR), (Evidence(0.2, 0.6, 0.4, 0.6), MODEL),
    (Evidence(math.nan, 0.6, 0.4, 0.6), MODEL),
])  # fmt: skip
def test_a_drifting_fusion_gives_way_to_the_better_voice(evidence: Evidence, voice: int) -> None:
    guard = DriftGuard(honest=True, refs=40)
    verdict, events = watched(guard, evidence)
    assert (verdict.voice, verdict.weight) == (voice, 1.0)
    assert len(events) == 1 and "drifted" in events[0]  # said once, not at every step
    verdict, events = watched(guard, Evidence(0.5, 0.5, 0.7, 0.8), 200)
    assert verdict.voice == BOTH and len(events) == 1 and "sound again" in events[0]


def test_a_difference_within_the_noise_is_no_drift() -> None:
    few, many = DriftGuard(honest=True, refs=8), DriftGuard(honest=True, refs=300)
    evidence = Evidence(0.5, 0.4, 0.44, 0.7)
    assert few.margin > 0.2 and many.margin == 0.05
    assert watched(few, evidence)[0].voice == BOTH and watched(many, evidence)[0].voice == PRIOR


def test_labels_that_are_mostly_wrong_are_not_learned_from() -> None:
    guard = DriftGuard(honest=True, refs=40)
    verdict, events = watched(guard, Evidence(0.1, 0.15, 0.15, 0.06))
    assert verdict.weight == 0 and len(events) == 1 and "harm" in events[0]
    assert watched(guard, Evidence(0.1, 0.3, 0.3, 0.12), 200)[0].weight == 0  # harder to come back than to stay
    assert watched(guard, Evidence(0.1, 0.4, 0.4, 0.5), 200)[0].weight == 1
    assert watched(guard, Evidence(0.1, 0.4, 0.4, math.nan), 20)[0].weight == 1  # nothing accepted, no harm


@pytest.mark.parametrize(("prior", "voice", "weight"), [
    (0.6, BOTH, 1.0), (0.1, MODEL, 0.0), (math.nan, MODEL, 0.0),
])  # fmt: skip
@pytest.mark.parametrize(("honest", "refs"), [(False, 50), (True, 3)])
def test_too_few_labels_to_judge_by(prior: float, voice: int, weight: float, honest: bool, refs: int) -> None:
    guard = DriftGuard(honest=honest, refs=refs, labels=50)
    assert not guard.honest
    verdict = guard.look(Evidence(prior, math.nan, math.nan, math.nan))
    assert (verdict.voice, verdict.weight) == (voice, weight) and "too few labels" in verdict.event
    assert float(guard.open) == weight


def test_a_handful_of_misses_does_not_condemn_the_prior() -> None:
    verdicts = [
        DriftGuard(honest=False, refs=refs).look(Evidence(0.03, math.nan, math.nan, math.nan)) for refs in (1, 2, 8)
    ]
    assert [one.voice for one in verdicts] == [BOTH, BOTH, MODEL]


def test_nothing_is_said_before_anything_was_learned() -> None:
    guard = DriftGuard(honest=True, refs=40, patience=20)
    bad = Evidence(0.6, 0.1, 0.1, 0.1)
    assert all(guard.look(bad) == Verdict(BOTH, 1.0, "") for _ in range(19))
    assert guard.look(bad).voice == PRIOR


def test_a_resumed_guard_goes_on_where_it_was() -> None:
    one, other = (DriftGuard(honest=True, refs=40) for _ in range(2))
    watched(one, Evidence(0.6, 0.3, 0.4, 0.6), 50)
    other.load_state_dict(one.state_dict())
    for evidence in (Evidence(0.6, 0.3, 0.58, 0.6), Evidence(0.5, 0.5, 0.7, 0.2)):
        assert watched(one, evidence, 30) == watched(other, evidence, 30)
