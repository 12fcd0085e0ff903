"""Learning to Label: the closed loop of prior, SESM, RPLE and segmenter, one step at a time.

Labelled images are of two kinds. The segmenter learns from one; the other (the held-out fold) it does not see at all,
so that the teacher knows no more of them than of the pool. From these labels SESM learns how far to trust whom, and the
policy learns which pixels to believe. (They must not take part as unlabelled pairs either: SESM comes to know them by
heart, and would hand their truth to the segmenter.) From `sesm.release` on the segmenter gets them too, and SESM and
the policy rest. Until then a drift guard watches the held-out labels (`labelling.guard`).

Where no pair has a prior, or none that is worth hearing, there is nobody to weigh and nothing to choose by: then this
method is `semires`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from l2l.config import Config, RivalConfig
from l2l.data.augment import strong_view
from l2l.errors import InputError
from l2l.labelling.guard import DriftGuard, Evidence
from l2l.labelling.policy import ACCEPT, AcceptancePolicy, State, observe
from l2l.labelling.records import agreed
from l2l.labelling.reward import (
    agreement_reward,
    gain_reward,
    held_out_direction,
    truth_reward,
    utility_reward,
    weights,
)
from l2l.labelling.rple import Rple, divergence, exact_gradient, mended, policy_gradient
from l2l.labelling.sesm import BOTH, DRAWN, MEETS, MODEL, came_out, hard_iou
from l2l.methods.known import (
    ENOUGH,
    finer,
    held_by_regions,
    make_folds,
    meets,
    misleading,
    prior_on_labels,
    prior_rows,
    unprompted,
)
from l2l.methods.semires import SemiRes, mend
from l2l.model.network import Answer
from l2l.proposals.regions import drawn, in_view
from l2l.training.losses import reliability_loss, segmentation_loss
from l2l.training.parts import Parts
from l2l.training.pool import Batch, joined

USUAL = 32  # held-out referents for which the policy's temperature is meant
SEMIRES = RivalConfig()  # IOM and CPI of the guided answer's labels, at that method's defaults


class L2L:
    """Paper symbols in the step: x labelled, h held out, u unlabelled; _w weak, _s strong; P prior, Q teacher."""

    def __init__(self, parts: Parts) -> None:
        given, self.useless = parts, misleading(parts) if parts.config.rple.guard else None
        if self.useless is not None:
            parts = unprompted(parts)
        self.parts = parts
        self.folds = make_folds(parts)
        count = len(parts.labelled_refs)
        self.extra = make_rple(parts.config, honest=len(self.folds) > 1, refs=len(self.folds[0]), labels=count)
        self.known = len(parts.pool.ref_of[prior_rows(given)].unique())
        self.few = self.known < ENOUGH and self.guard is not None
        self.bare = not parts.pool.present.any()
        score, iou = prior_on_labels(given)
        more, met = finer(parts), meets(iou)
        for network in (parts.network, parts.teacher):
            if parts.config.sesm.calibrate and not self.few:
                network.sesm.calibrate(score, iou)
            network.sesm.finer.fill_(more)
            network.sesm.meets.fill_(met)
            if not self.bare and (self.guard is None or self.guard.honest):
                network.sesm.taught.fill_(len(self.folds[0]))
                network.sesm.ahead.fill_(1 - parts.config.sesm.release)
        if self.few or self.bare:  # choosing by a score of which nobody knows what it tells cost five points
            self.extra.policy.telling.zero_()
        if self.bare:
            for network in (parts.network, parts.teacher):
                network.sesm.voice.fill_(MODEL)
        if parts.config.model.pretrained:
            parts.network.guided_share = parts.config.sesm.guided_share
        self.together = parts.config.sesm.together and any(len(rows) > 1 for rows in parts.pool.pairs_of)
        self.regions = parts.regions if parts.config.sesm.regions else None
        if self.regions is not None:
            held = held_by_regions(parts.pool, self.regions)
            for network in (parts.network, parts.teacher):
                network.sesm.suit(held)
        self.unlabelled = (~parts.pool.labelled[parts.pool.ref_of]).nonzero()[:, 0]
        if not len(self.unlabelled):
            raise InputError("l2l learns from unlabelled pairs, here are none: lower --rate or add --unlabelled FILE")
        self.without = SemiRes(parts) if self.bare else None

    def learning_rates(self) -> Mapping[str, float]:
        config = self.parts.config
        return {"segmenter": config.train.rate, "sesm": config.sesm.rate, "extra": config.rple.rate}

    @property
    def guard(self) -> DriftGuard | None:
        """The drift guard, where it is asked for."""
        return self.extra.guard if self.parts.config.rple.guard else None

    def fold_at(self, step: int) -> tuple[Tensor, Tensor]:
        """(refs the segmenter learns from, refs held out) at a step."""
        config = self.parts.config
        every = self.parts.labelled_refs
        fold = step // config.sesm.rotate % len(self.folds) if config.sesm.rotate else 0
        held = self.folds[fold]
        seen = every[~torch.isin(every, held)] if len(self.folds) > 1 else every
        if step >= config.sesm.release * config.train.steps:
            return every, held
        return seen, held

    def step(self, step: int) -> tuple[Tensor, dict[str, float]]:
        parts, config, guard = self.parts, self.parts.config, self.guard
        if step == 0:
            parts.events.extend(self._found())
        if step == 0 and guard is not None and not guard.honest:
            known = prior_on_labels(parts)[1]
            prior = float(known.mean()) if len(known) else math.nan
            self._ask_guard(guard, Evidence(prior, math.nan, math.nan, math.nan))
        shut = guard is not None and not bool(guard.open)
        if self.without is not None and not shut:
            return self.without.step(step)
        alone = shut or step < config.train.burn_in * config.train.steps  # the labels are learned from alone
        released = step >= config.sesm.release * config.train.steps
        learning = not released and (guard is None or guard.honest)
        seen, held = self.fold_at(step)

        rows = parts.refs_at("labelled", step, config.train.labelled, seen)
        if shut:  # labels take the place of the pseudo-labels
            rows = torch.cat([rows, parts.refs_at("labelled instead", step, config.train.unlabelled, seen)])
        x = parts.weak(rows, "labelled", step, swap=config.sesm.swap, drop=config.sesm.drop)
        shown: list[tuple[str, Batch]] = []  # to the teacher: the held-out pairs while they teach, and candidates
        if learning:
            h = parts.weak(parts.refs_at("held out", step, config.train.held_out, held), "held out", step,
                           drop=config.sesm.drop)  # fmt: skip
            shown.append(("held out", h))
        if not alone:
            offer = config.rple.candidates * config.train.unlabelled
            u = parts.weak(parts.rows_at("unlabelled", step, offer, self.unlabelled), "unlabelled", step)
            shown.append(("unlabelled", u))
        assert x.mask is not None
        count_x, count_h = len(x.rows), len(h.rows) if learning else 0

        if shown:
            both = joined(*(batch for _, batch in shown))
            with torch.no_grad():
                teacher = plain = parts.answer(parts.teacher, both.image, both.tokens, both.proposals)
                if self.together:
                    teacher = self._together(teacher, step, shown)
            assert teacher.elevated is not None
            elevated, regions = teacher.elevated, None
            if self.regions is not None:
                regions = torch.cat([self._regions(name, step, batch) for name, batch in shown])
                teacher = mended(teacher, regions, parts.teacher.sesm.drawing)
            state = observe(teacher, both.proposals, both.image)
            cells, samples = self.extra.judge(state, remember=slice(None) if alone else slice(count_h, None))
            accept, take = self.extra.accept(state, cells.detach(), samples.detach())

        x_s = strong_view(x.image, parts.rng("strong x", step))
        images, tokens, proposals = x_s, x.tokens, x.proposals
        if not alone:
            chosen = self.extra.choose(samples[count_h:], config.train.unlabelled, parts.rng("choice", step))
            some = u[chosen]
            images = torch.cat([x_s, strong_view(some.image, parts.rng("strong u", step))])
            tokens, proposals = torch.cat([x.tokens, some.tokens]), joined(x, some).proposals
        student = parts.answer(parts.network, images, tokens, proposals)
        assert student.guided is not None

        loss_x = segmentation_loss(student.q[:count_x], x.mask).mean()
        loss_xg = segmentation_loss(student.guided[:count_x], x.mask).mean() * (not self.bare)
        loss = loss_x + loss_xg
        logs = {"loss_x": loss_x.item(), "loss_x_guided": loss_xg.item()}

        if not shown:
            return loss, logs
        if learning:
            assert h.mask is not None
            loss_sesm, told = self._sesm_loss(step, h, plain, regions)
            loss_policy, rewards = self._policy_loss(step, h, None if alone else u, state, cells, samples, teacher)
            loss, logs = loss + loss_sesm + loss_policy, logs | told | rewards
            precision = accepted_precision(accept[:count_h], take[:count_h], state.label[:count_h], h.mask > 0.5)
            if guard is not None:
                self._ask_guard(guard, Evidence(told["held_out_prior"], told["held_out_model"],
                                                told["held_out_fused"], precision))  # fmt: skip
        if alone:
            return loss, logs

        take, at = take[count_h:], count_h + chosen
        label_u, accept = state.label[at].float(), accept[at]
        target = state.proposal[at] if config.rple.soft else label_u
        weight = config.train.unlabelled_weight
        # which samples count, not how much all of them do; among those that were chosen all count alike
        share = take[chosen] / take.mean().clamp_min(1e-3) if config.rple.candidates == 1 else torch.ones_like(at)
        loss_u = (segmentation_loss(student.q[count_x:], target, accept) * share).mean()
        guided = target, accept
        if config.sesm.commit and config.sesm.use and regions is not None:
            assert plain.guided is not None
            own = mend(plain.guided[at].float().sigmoid(), regions[at], least_iou=SEMIRES.iou, cover=SEMIRES.cover)
            guided = own.label, own.accept
        loss_ug = (segmentation_loss(student.guided[count_x:], *guided) * share).mean()
        front = (accept * label_u).sum() / label_u.sum().clamp_min(1)
        return loss + weight * (loss_u + loss_ug), logs | {
            "loss_u": loss_u.item(), "loss_u_guided": loss_ug.item(), "accept_samples": float(take.mean()),
            "accept_front": float(front), "rho": float(elevated.rho[count_h:].sigmoid().mean()),
            **dict(zip(("weight_prior", "weight_model", "weight_guided", "weight_bias"),
                       elevated.weights[count_h:].mean(0).tolist(), strict=True)),
        }  # fmt: skip

    def _found(self) -> Iterator[str]:
        """What the known labels have said before the first step, in words, where it is not as usual."""
        sesm = self.parts.network.sesm
        if self.useless is not None:
            meant, other = self.useless
            yield (f"drift guard: the prior is useless (where it is surest, mean IoU with what is meant {meant:.2f}, "
                   f"with another object {other:.2f}): it is left out")  # fmt: skip
        if self.bare:
            yield ("no prior: there is nobody to weigh and nothing to choose by, so labels are made as semires makes "
                   "them")  # fmt: skip
            return
        if self.few:
            yield (f"prior's score: what it tells, {self.known} known masks cannot say ({ENOUGH} can), so pairs are "
                   "chosen by chance")  # fmt: skip
        elif (tells := float(sesm.tells)) < 1:
            yield (f"prior's score: it tells {tells:.0%} of what it should of which priors are right; the less, the "
                   "more they are heard")  # fmt: skip
        if self.regions is not None and (far := sesm.drawing["draw"].item() / DRAWN[1]) < 1:
            yield (f"regions: by the known masks they are objects to {far:.0%}, pieces of them else; labels of the "
                   "unguided answer are drawn to them so far")  # fmt: skip
        if (share := float(sesm.meets) / MEETS) < 0.95:
            yield (f"scores: proposals that meet their object have an IoU of {share * MEETS:.2f} ({MEETS} is usual), "
                   f"so scores start at {share:.0%}")  # fmt: skip

    def _ask_guard(self, guard: DriftGuard, evidence: Evidence) -> None:
        """Show the guard what the step has shown, and do as it says."""
        verdict = guard.look(evidence)
        if not self.bare:
            for network in (self.parts.network, self.parts.teacher):
                network.sesm.voice.fill_(verdict.voice)
        if verdict.event:
            self.parts.events.append(f"drift guard: {verdict.event}")

    def _together(self, teacher: Answer, step: int, shown: list[tuple[str, Batch]]) -> Answer:
        """The teacher's answers, each pooled with what it says to another sentence of the same record."""
        parts, places, others, start = self.parts, [], [], 0
        for name, batch in shown:
            own, other = parts.another(batch.rows, name, step)
            places.append(start + own)
            others.append(other)
            start += len(batch.rows)
        heard = joined(*others)
        if not len(heard.rows):
            return teacher
        answer = parts.answer(parts.teacher, heard.image, heard.tokens, heard.proposals)
        return agreed(teacher, answer, torch.cat(places))

    def _regions(self, name: str, step: int, batch: Batch) -> Tensor:
        """The regions of a batch as its weak view shows them, at twice the resolution of the maps."""
        parts, soft = self.parts, batch.proposals.soft
        assert self.regions is not None
        view, _ = parts.view(batch.rows, name, step)
        maps = self.regions[parts.pool.image_of[batch.rows]].to(soft.device)
        return in_view(maps, view, (2 * soft.shape[1], 2 * soft.shape[2]))

    def _sesm_loss(
        self, step: int, h: Batch, teacher: Answer, regions: Tensor | None
    ) -> tuple[Tensor, dict[str, float]]:
        """SESM on labels the segmenter has not seen; nothing flows back into what it fuses. `regions`: h's first."""
        sesm, q, guided = self.parts.network.sesm, teacher.q[: len(h.rows)], teacher.guided
        assert h.mask is not None and guided is not None
        elevated = sesm.fuse(sesm.reliability(h.proposals, q), h.proposals, q, guided[: len(h.rows)], voice=BOTH)
        y = h.mask > 0.5
        here, everywhere = h.proposals.present, torch.ones_like(h.proposals.present)
        loss_fused = segmentation_loss(elevated.fused, h.mask).mean()
        iou_prior, iou_model = hard_iou(h.proposals.soft > 0.5, y), hard_iou(q > 0, y)
        iou_fused = hard_iou(elevated.fused > 0, y)
        came_model, came_answer = came_out(q, h.mask), came_out(elevated.answer, h.mask)
        loss_rho = reliability_loss(elevated.rho, iou_prior, here)
        loss_kappa = reliability_loss(elevated.kappa, came_model, here)
        loss_kappa = loss_kappa + reliability_loss(elevated.alone, came_model, everywhere)
        loss_score = reliability_loss(elevated.score, came_answer, everywhere)
        prior = float((iou_prior * here).sum() / here.sum()) if here.any() else math.nan
        ridge = self.parts.config.sesm.ridge / len(self.folds[0]) * sesm.ridge()  # what few labels say weighs less
        loss_drawn = elevated.fused.new_zeros(())
        if regions is not None:
            label = drawn(elevated.fused.detach(), regions[: len(y)], **sesm.drawing)
            loss_drawn = segmentation_loss(label, h.mask).mean()
        return loss_fused + loss_rho + loss_kappa + loss_score + loss_drawn + ridge, {
            "loss_fused": loss_fused.item(), "loss_rho": loss_rho.item(), "loss_kappa": loss_kappa.item(),
            "held_out_prior": prior, "held_out_model": float(iou_model.mean()),
            "held_out_fused": float(iou_fused.mean()), **{name: value.item() for name, value in sesm.drawing.items()},
        }  # fmt: skip

    def _policy_loss(
        self, step: int, h: Batch, u: Batch | None, state: State, cells: Tensor, samples: Tensor, teacher: Answer,
    ) -> tuple[Tensor, dict[str, float]]:
        """REINFORCE on the held-out labels, plus agreement and one-step utility on the unlabelled pairs."""
        config = self.parts.config.rple
        assert h.mask is not None and teacher.elevated is not None and teacher.proposal is not None
        count = len(h.rows)
        offered = state.proposal if config.soft else state.label
        if config.gain:
            reward = gain_reward(offered[:count], h.mask > 0.5, teacher.q[:count].float().sigmoid())
        else:
            reward = truth_reward(offered[:count], h.mask > 0.5, wrong=config.wrong)
        if config.rule == "threshold":
            return cells.new_zeros(()), {}
        if config.rule == "confidence":
            return confidence_loss(cells[:count], samples[:count], state.label[:count], h.mask > 0.5, reward), {}
        rng = self.parts.rng("actions", step)
        truth = config.truth * reward
        if config.estimator == "exact":
            held = exact_gradient(cells[:count], samples[:count], truth)
        else:
            held = policy_gradient(cells[:count], samples[:count], truth, count=config.samples, generator=rng)
        loss = held.loss
        logs = {"reward": float(held.sample_value.mean()), "reward_spread": float(held.spread)}
        if u is not None and (config.agreement or config.utility):
            label, q = state.label[count:], teacher.q[count:]
            direction = held_out_direction(teacher.q[:count], teacher.features[:count], h.mask > 0.5)
            agree = agreement_reward(label, u.proposals.soft, q.sigmoid(), teacher.proposal[count:].sigmoid(),
                                     teacher.elevated.rho[count:].sigmoid())  # fmt: skip
            useful = utility_reward(label, q, teacher.features[count:], direction)
            blind = config.agreement * agree + config.utility * useful
            if config.estimator == "exact":
                loss = loss + exact_gradient(cells[count:], samples[count:], blind).loss
            else:
                loss = loss + policy_gradient(
                    cells[count:], samples[count:], blind, count=config.samples, generator=rng
                ).loss
            logs |= {"reward_agreement": float(agree.sum((1, 2)).mean()), "utility": float(useful.sum((1, 2)).mean())}
        # Kept near where it started, in the reward's own units (each cell by its weight): the best policy is then
        # sigma(its first logit + expected reward / temperature). Of cells what earns nothing stays accepted; refusing
        # has to pay.
        run = self.parts.config
        done = min(1.0, step / (run.sesm.release * run.train.steps))
        temperature = config.temperature * (1 - done) + config.temperature_end * done
        temperature = temperature * USUAL / len(self.folds[0])  # what few labels say weighs less
        apart = (weights(state.label) * divergence(cells, ACCEPT)).sum((1, 2)).mean()
        apart = apart + divergence(samples, self.extra.policy.start(state)).mean()
        return loss + temperature * apart, logs | {"policy_divergence": apart.item() / 2}


def make_rple(config: Config, *, honest: bool = True, refs: int = 0, labels: int = 0) -> Rple:
    """The policy of a run, with its coverage bands and its drift guard."""
    bands = (
        (config.rple.samples_low, config.rple.samples_high),
        (config.rple.front_low, config.rple.front_high),
        (config.rple.back_low, 0.999),
    )
    patience = max(30, round(2 * config.train.burn_in * config.train.steps))
    return Rple(
        policy=AcceptancePolicy(words=config.model.text_width), bands=bands, memory=config.rple.memory,
        rule=config.rple.rule, threshold=config.rple.threshold, wrong=config.rple.wrong,
        guard=DriftGuard(honest=honest, refs=refs, labels=labels, patience=patience),
    )  # fmt: skip


def accepted_precision(accept: Tensor, take: Tensor, label: Tensor, truth: Tensor) -> float:
    """Share of the accepted foreground that is right; NaN if none is accepted. accept (B, h, w) and take (B,) in
    [0, 1], label and truth bool (B, h, w)."""
    believed = accept * take[:, None, None] * label
    total = float(believed.sum())
    return float((believed * truth).sum()) / total if total > 0 else math.nan


def confidence_loss(cells: Tensor, samples: Tensor, label: Tensor, truth: Tensor, reward: Tensor) -> Tensor:
    """For the ablation without reinforcement: cross-entropy on which cells are right, weighted as the reward is, and on
    which samples are worth accepting. cells (B, h, w) and samples (B,) are logits."""
    right = F.binary_cross_entropy_with_logits(cells, (label == truth).float(), reduction="none")
    worth = (reward.sum((1, 2)) > 0).float()
    return (weights(label, truth) * right).sum((1, 2)).mean() + F.binary_cross_entropy_with_logits(samples, worth)
