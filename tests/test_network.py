from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from l2l.labelling.sesm import SESM
from l2l.model.attention import attend
from l2l.model.network import Network
from l2l.model.segmenter import Segmenter
from l2l.model.text import PAD, CompactText
from l2l.model.vision import CompactEncoder
from l2l.proposals.proposal import Proposals
from l2l.training.pool import grid_size


def network(*, stir: float = 0.05) -> Network:
    """A small one whose parts that start at zero are moved off it, so that everything has a say."""
    torch.manual_seed(0)
    segmenter = Segmenter(
        vision=CompactEncoder(channels=(8, 12, 16, 20), depths=(1, 1, 1, 1)),
        text=CompactText(vocabulary_size=30, width=16, length=9, depth=1),
        words=16, width=12, context=(0, 1, 1),
    )  # fmt: skip
    made = Network(segmenter=segmenter, sesm=SESM(width=12)).eval()
    with torch.no_grad():
        for one in made.parameters():
            one.add_(stir * torch.randn_like(one))
    return made


def inputs(height: int = 72, width: int = 56, batch: int = 3) -> tuple[Tensor, Tensor, Proposals]:
    rng = torch.Generator().manual_seed(height * width)
    image = torch.randn(batch, 3, height, width, generator=rng)
    tokens = torch.randint(2, 30, (batch, 5), generator=rng)
    tokens[0, 3:] = PAD
    soft = torch.rand(batch, *grid_size((height, width)), generator=rng)
    present = torch.ones(batch, dtype=torch.bool)
    return image, tokens, Proposals(soft, torch.full((batch,), 0.8), present)


@pytest.mark.parametrize("size", [(72, 56), (32, 32), (33, 47), (50, 98)])
def test_shapes_at_odd_sizes(size: tuple[int, int]) -> None:
    image, tokens, proposals = inputs(*size)
    answer = network()(image, tokens, proposals)
    cells = grid_size(size)
    assert answer.guided is not None and answer.elevated is not None
    assert answer.q.shape == answer.guided.shape == answer.elevated.fused.shape == (3, *cells)
    assert answer.features.shape == (3, 12, *cells)
    assert [one.shape[2] for one in answer.encoded.maps][0] == cells[0]
    assert answer.elevated.weights.shape == (3, 4)
    assert all(one.isfinite().all() for one in (answer.q, answer.guided))


def test_padding_says_nothing() -> None:
    made, (image, tokens, proposals) = network(), inputs()
    short, long = made(image, tokens, proposals), made(image, F.pad(tokens, (0, 4), value=PAD), proposals)
    assert torch.allclose(short.q, long.q, atol=1e-4)
    assert torch.allclose(short.best, long.best, atol=1e-4)
    assert torch.allclose(short.encoded.sentence, long.encoded.sentence, atol=1e-5)


def test_words_and_their_order_matter() -> None:
    made, (image, tokens, _) = network(), inputs()
    q = made(image, tokens).q
    assert not torch.allclose(made(image, tokens.roll(1, 0)).q, q, atol=1e-3)
    assert not torch.allclose(made(image, tokens.flip(1)).q[1:], q[1:], atol=1e-4)


def test_the_own_opinion_does_not_hear_the_prior() -> None:
    made, (image, tokens, proposals) = network(), inputs()
    alone = made(image, tokens)
    other = Proposals(1 - proposals.soft, 0.5 * proposals.score, proposals.present)
    with_one, with_other = made(image, tokens, proposals), made(image, tokens, other)
    assert alone.guided is None and torch.equal(alone.best, alone.q)
    assert torch.equal(alone.q, with_one.q) and torch.equal(alone.q, with_other.q)
    assert not torch.allclose(with_one.best, with_other.best, atol=1e-4)  # the guided one does


def test_guidance_starts_without_effect() -> None:
    made, (image, tokens, proposals) = network(stir=0), inputs()
    answer = made(image, tokens, proposals)
    assert answer.guided is not None and answer.elevated is not None
    heard = made.sesm.listen(answer.encoded, proposals, answer.q)
    assert not any(one.any() for one in heard.guidance)
    # so the decoder adds to the prior what it says without guidance, but for its bias towards background
    added = answer.q - made.segmenter.classify.bias
    assert torch.allclose(answer.guided, heard.base + added, atol=1e-5)
    assert torch.equal(answer.best, answer.elevated.answer)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_guided_pass_teaches_the_encoder_less(share: float) -> None:
    made, given = network(), inputs()

    def taught(share: float) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        made.guided_share = share
        guided = made(*given).guided
        assert guided is not None
        encoder, decoder = list(made.segmenter.vision.parameters()), list(made.segmenter.smooth.parameters())
        found = torch.autograd.grad(guided.square().sum(), encoder + decoder, allow_unused=True)
        there = [torch.zeros(()) if one is None else one for one in found]
        return guided, there[: len(encoder)], there[len(encoder) :]

    whole, less = taught(1.0), taught(share)
    assert torch.equal(whole[0], less[0])  # what it says is the same
    assert any(one.any() for one in whole[1])
    for one, other in zip(whole[1], less[1], strict=True):
        assert torch.allclose(share * one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()))
    assert all(torch.allclose(one, other, rtol=1e-4) for one, other in zip(whole[2], less[2], strict=True))


def test_pairs_do_not_see_one_another() -> None:
    made, (image, tokens, proposals) = network(), inputs()
    together, alone = made(image, tokens, proposals), made(image[1:2], tokens[1:2], proposals[1:2])
    assert torch.allclose(together.q[1:2], alone.q, atol=1e-4)
    assert torch.allclose(together.best[1:2], alone.best, atol=1e-4)


def test_half_precision_is_close() -> None:
    made, (image, tokens, proposals) = network(stir=0.07), inputs()
    with torch.no_grad():
        exact = made(image, tokens, proposals)
        with torch.autocast("cpu", torch.bfloat16):
            rough = made(image, tokens, proposals)
    for one, other in ((exact.q, rough.q), (exact.best, rough.best)):
        assert other.dtype == torch.float32
        assert float((one.sigmoid() - other.sigmoid()).abs().max()) < 0.05
        assert float((one - other).abs().mean() / one.std()) < 0.05


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 4), st.integers(1, 7), st.integers(1, 6))
def test_attention_is_that_of_torch(seed: int, batch: int, heads: int, count: int, keys: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    query = 3 * torch.randn(batch, heads, count, 4, generator=rng)
    key, value = torch.randn(2, batch, heads, keys, 4, generator=rng)
    real = torch.rand(batch, keys, generator=rng) < 0.6
    real[torch.arange(batch), torch.randint(keys, (batch,), generator=rng)] = True
    query.requires_grad_()
    plain = F.scaled_dot_product_attention(query, key, value, attn_mask=real[:, None, None])
    found = attend(query, key, value, real)
    assert torch.allclose(found, plain, atol=1e-5)
    mine, theirs = (torch.autograd.grad((one * one).sum(), query)[0] for one in (found, plain))
    assert torch.allclose(mine, theirs, atol=1e-4)
