"""Cached generation against full recomputation, and how tokens are drawn."""

import math

import pytest
import torch
from goldens import Case

from aiprod_engine.errors import NonFiniteError, SizeError
from aiprod_engine.memory.residency import Residency
from aiprod_engine.models.text.gemma3 import Gemma3, Gemma3Config
from aiprod_engine.models.text.generate import Chat, Continuation, Sampling, generate
from aiprod_engine.models.text.tokenizer import IMAGE

STEPS = 28  # beyond the window of 24, also counted from the end of the chat


@pytest.fixture
def tiny(build, strip):
    def make(dtype=torch.float32):
        case = Case("text/gemma3_tiny")
        weights = strip(case.weights, "language_model.model.")
        config = Gemma3Config.from_metadata(case.config.get("gemma", case.config))
        return build(Gemma3, config, {k: v.to(dtype) for k, v in weights.items()})

    return make


def chat(length=31, padding=5, image_at=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 420, (1, length), generator=generator)
    mask = torch.ones_like(ids)
    ids[:, :padding], mask[:, :padding] = 0, 0
    image = None
    if image_at is not None:
        ids[:, image_at : image_at + 4] = IMAGE
        image = torch.randn(4, 32, generator=generator)
    return Chat(ids, mask, image)


def longer(asked, tokens):
    """The chat with tokens behind it."""
    more = torch.tensor([tokens], dtype=torch.long)
    ids, mask = torch.cat([asked.ids, more], 1), torch.cat([asked.mask, torch.ones_like(more)], 1)
    return Chat(ids, mask, asked.image)


def logits_of(decoder, ids, mask):
    """Logits of the last row without any cache."""
    *_, last = decoder(ids, mask)
    return last[0, -1] @ decoder.embed_tokens.weight.T


def greedy(continuation, count=STEPS):
    """Logits of each step and the tokens that they choose; no token stops."""
    tokens, logits = [], []
    for _ in range(count):
        logits.append(continuation.logits)
        tokens.append(int(logits[-1].argmax()))
        continuation.append(tokens[-1])
    return tokens, torch.stack(logits)


def test_cached_logits_equal_full_recomputation(tiny):
    decoder, asked = tiny(), chat()
    tokens, cached = greedy(Continuation(decoder, asked, STEPS))
    for step in range(0, STEPS, 3):
        so_far = longer(asked, tokens[:step])
        whole = logits_of(decoder, so_far.ids, so_far.mask)
        torch.testing.assert_close(cached[step], whole, rtol=1e-4, atol=1e-4)


def test_cached_logits_equal_full_recomputation_with_a_picture(tiny):
    decoder, asked = tiny(), chat(image_at=9)
    tokens, cached = greedy(Continuation(decoder, asked, STEPS))
    for step in range(0, STEPS, 3):
        whole = Continuation(decoder, longer(asked, tokens[:step]), 0).logits
        torch.testing.assert_close(cached[step], whole, rtol=1e-4, atol=1e-4)


def test_the_window_hides_what_lies_before_it(tiny):
    """A token 24 x layers back matters through the global layer alone."""
    decoder = tiny()
    asked = chat(length=200, padding=0)
    changed = Chat(asked.ids.clone(), asked.mask)
    changed.ids[0, 3] = 5 + changed.ids[0, 3] % 100

    def both(decoder):
        runs = (Continuation(decoder, a, 4) for a in (asked, changed))
        for run in (runs := list(runs)):
            for token in (9, 8, 7):
                run.append(token)
        return [run.logits for run in runs]

    one, other = both(decoder)
    assert not torch.equal(one, other)
    sliding = tuple(kind for kind in decoder.config.layers if kind.window)
    del decoder.layers[5]
    object.__setattr__(decoder.config, "layers", sliding)
    one, other = both(decoder)
    assert torch.equal(one, other)


def test_padding_means_nothing(tiny):
    decoder = tiny()
    padded = chat(padding=7)
    bare = Chat(padded.ids[:, 7:], padded.mask[:, 7:])
    other = Chat(padded.ids.masked_fill(padded.mask == 0, 77), padded.mask)
    tokens, logits = greedy(Continuation(decoder, padded, STEPS))
    assert torch.equal(greedy(Continuation(decoder, other, STEPS))[1], logits)
    alone, without = greedy(Continuation(decoder, bare, STEPS))
    assert alone == tokens
    torch.testing.assert_close(without, logits, rtol=1e-3, atol=1e-3)


def test_rows_of_a_picture_see_each_other_and_nothing_else_ahead(tiny):
    """A later row changes what an earlier one becomes; text behind the picture never does."""
    decoder = tiny()
    base = chat(image_at=9)

    def first_row_key(asked):
        run = Continuation(decoder, asked, 1)
        return run._caches[-1].keys[0, :, 9]  # of the picture's first row, in the last layer

    before = first_row_key(base)
    picture = base.image.clone()
    picture[3] += 1
    assert not torch.allclose(first_row_key(Chat(base.ids, base.mask, picture)), before)
    ids = base.ids.clone()
    ids[0, 20] = 5
    assert torch.equal(first_row_key(Chat(ids, base.mask, base.image)), before)


def test_streamed_layers_and_a_table_that_stays_home_write_the_same(tiny):
    expected = greedy(Continuation(tiny(), chat(), STEPS))[1]
    decoder = tiny()
    residency = Residency(decoder, "stream", always_copies=True)
    residency.place(torch.device("cpu"))
    found = greedy(Continuation(decoder, chat(), STEPS))[1]
    assert torch.equal(found, expected)


def test_no_copy_of_the_table_where_it_lies_on_the_device(tiny):
    decoder = tiny()
    table = Continuation(decoder, chat(), 1)._table
    assert table.data_ptr() == decoder.embed_tokens.weight.data_ptr()


def test_bfloat16_writes_near_float32(tiny):
    """Four times the error of rounding the weights alone."""
    exact, half = tiny(), tiny(torch.bfloat16)
    rounded = tiny(torch.bfloat16).float()
    tokens, a = greedy(Continuation(exact, chat(), STEPS))

    def forced(decoder):
        run, logits = Continuation(decoder, chat(), STEPS), []
        for token in tokens:
            logits.append(run.logits)
            run.append(token)
        return torch.stack(logits)

    b, c = forced(half), forced(rounded)
    assert b.dtype == torch.float32
    assert (a - b).norm() <= 4 * (a - c).norm()


def test_generate_ends_at_a_stop_id_and_at_the_limit(tiny):
    decoder, asked = tiny(), chat()
    tokens, _ = greedy(Continuation(decoder, asked, STEPS))
    stop = next(t for t in tokens if tokens.index(t) > 2)
    seen = []
    draw = torch.argmax

    def run(stops, limit):
        seen.clear()
        return generate(Continuation(decoder, asked, limit), lambda x: int(draw(x)), stops, limit,
                        seen.append)  # fmt: skip

    ended = run({1, stop}, STEPS)
    assert ended == tokens[: tokens.index(stop)]
    assert seen == list(range(1, len(ended) + 1))
    assert run({-5}, 7) == tokens[:7]
    assert run({tokens[0]}, 7) == []


def test_a_listener_may_cancel(tiny):
    class CancelledError(Exception):
        pass

    def listener(count):
        if count == 3:
            raise CancelledError

    run = Continuation(tiny(), chat(), 9)
    with pytest.raises(CancelledError):
        generate(run, lambda x: int(x.argmax()), (), 9, listener)


def test_a_chat_without_its_picture_raises():
    asked = chat(image_at=9)
    with pytest.raises(SizeError, match="places for 4 rows of a picture, got 0"):
        Chat(asked.ids, asked.mask)
    with pytest.raises(SizeError, match="got 3"):
        Chat(asked.ids, asked.mask, asked.image[:3])


def test_values_that_are_not_finite_raise(tiny):
    decoder = tiny()
    decoder.layers[2].mlp.down_proj.weight[0, 0] = math.inf
    with pytest.raises(NonFiniteError, match="logits must be finite"):
        Continuation(decoder, chat(), 1)


# Sampling


def drawn(sampling, logits, count=1000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor([sampling.draw(logits, generator) for _ in range(count)])
    return torch.bincount(tokens, minlength=len(logits)) / count


LOGITS = torch.tensor([0.5, 2.0, -1.0, 1.0, 1.9])


def test_temperature_shapes_the_distribution():
    for temperature in (0.7, 1.5):
        found = drawn(Sampling(temperature, top_k=0), LOGITS)
        torch.testing.assert_close(found, (LOGITS / temperature).softmax(0), rtol=0, atol=0.05)
    assert drawn(Sampling(0.0), LOGITS, 5)[1] == 1


def test_top_k_and_top_p_leave_the_likeliest():
    assert (drawn(Sampling(1.0, top_k=2), LOGITS) > 0).tolist() == [False, True, False, False, True]
    # probabilities 0.37, 0.33, 0.14, ...: two reach 0.6, three reach 0.75
    for top_p, kept in ((0.3, {1}), (0.6, {1, 4}), (0.75, {1, 3, 4})):
        found = drawn(Sampling(1.0, top_k=0, top_p=top_p), LOGITS)
        assert set(found.nonzero().flatten().tolist()) == kept


def test_sampling_equals_the_published_filters():
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(300, generator=torch.Generator().manual_seed(3)) * 3
    scores = logits[None]
    for warper in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(50), TopPLogitsWarper(0.9)):
        scores = warper(None, scores)
    found = drawn(Sampling(0.7, 50, 0.9), logits, 1500)
    assert set(found.nonzero().flatten().tolist()) <= set(
        scores[0].isfinite().nonzero().flatten().tolist()
    )
    torch.testing.assert_close(found, scores[0].softmax(0), rtol=0, atol=0.05)


def test_draws_repeat_with_the_seed():
    logits = torch.randn(300)
    one, two = torch.Generator().manual_seed(4), torch.Generator().manual_seed(4)
    sampling = Sampling(1.0, 0)
    assert [sampling.draw(logits, one) for _ in range(20)] == [
        sampling.draw(logits, two) for _ in range(20)
    ]
    assert not torch.equal(drawn(sampling, logits, 20, 5), drawn(sampling, logits, 20, 6))


@pytest.mark.parametrize("bad", [(-1.0, 50, 1.0), (1.0, -1, 1.0), (1.0, 50, 0.0), (1.0, 50, 1.1)])
def test_sampling_out_of_range_raises(bad):
    with pytest.raises(SizeError, match="temperature and top_k"):
        Sampling(*bad)
