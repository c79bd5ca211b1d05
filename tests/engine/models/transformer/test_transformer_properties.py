"""Properties of the whole network: modes, batches, cancelling, and that every weight is read."""

from dataclasses import replace

import pytest
import torch
from goldens import golden

from aiprod_engine.errors import MismatchError
from aiprod_engine.models.transformer import Transformer, TransformerConfig

CASES = (
    "transformer/full_v20_per_token",
    "transformer/full_v23_per_token",
    "transformer/full_v25_uniform",
)
AV_ONLY = ("av_ca", "a2v", "audio_to_video", "video_to_audio")


def parts(outputs):
    return torch.cat([x.flatten() for x in outputs if x is not None])


@pytest.mark.parametrize("case", golden(*CASES))
def test_every_weight_matters(case, load_transformer, streams_of):
    model, streams = load_transformer(case), streams_of(case)
    expected = parts(model(*streams))
    for name, parameter in model.named_parameters():
        original = parameter.data
        parameter.data = original + torch.randn_like(original)
        moved = (parts(model(*streams)) - expected).abs().max()
        parameter.data = original
        assert moved > 1e-4, name


@pytest.mark.parametrize("case", golden(*CASES))
def test_same_input_same_output(case, load_transformer, streams_of):
    model = load_transformer(case)
    assert torch.equal(parts(model(*streams_of(case))), parts(model(*streams_of(case))))


@pytest.mark.parametrize(
    "case",
    golden(
        *CASES,
        "transformer/full_v20_text_mask_per_stream",
        "transformer/full_v23_self_attention_mask_asymmetric",
        "transformer/full_v23_two_records",
    ),
)
def test_batch_of_two_equals_two_of_one(case, load_transformer, streams_of, one_sample):
    model, (video, audio) = load_transformer(case), streams_of(case)
    perturbations = case.call.get("perturbations", [[], []])
    both = model(video, audio, perturbations)
    for i in range(2):
        alone = model(one_sample(video, i), one_sample(audio, i), [perturbations[i]])
        for whole, part in zip(both, alone, strict=True):
            torch.testing.assert_close(whole[i : i + 1], part, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("case", golden(*CASES))
def test_inputs_are_not_written(case, load_transformer, streams_of):
    streams = streams_of(case)
    copies = [{k: v.clone() for k, v in vars(s).items() if torch.is_tensor(v)} for s in streams]
    load_transformer(case)(*streams)
    for stream, copy in zip(streams, copies, strict=True):
        assert all(torch.equal(getattr(stream, k), v) for k, v in copy.items())


@pytest.mark.parametrize("case", golden("transformer/full_v20_uniform", *CASES[2:]))
def test_one_timestep_for_all_tokens_may_be_given_once(case, load_transformer, streams_of):
    model, streams = load_transformer(case), streams_of(case)
    once = [replace(s, timesteps=s.timesteps[:, :1]) for s in streams]
    for name, value in zip(("video", "audio"), model(*once), strict=True):
        case.check(name, value)


@pytest.mark.parametrize("case", golden(*CASES))
def test_absent_stream_equals_the_single_stream_build(case, load_transformer, streams_of):
    video, audio = streams_of(case)
    model = load_transformer(case)
    own = {k: v for k, v in case.weights.items() if not any(part in k for part in AV_ONLY)}
    video_weights = {k: v for k, v in own.items() if "audio" not in k}
    audio_weights = {k: v for k, v in own.items() if "audio" in k}
    video_only = load_transformer(case, weights=video_weights, modalities="video")
    audio_only = load_transformer(case, weights=audio_weights, modalities="audio")
    assert torch.equal(model(video, None)[0], video_only(video, None)[0])
    assert torch.equal(model(None, audio)[1], audio_only(None, audio)[1])
    assert model(video, None)[1] is None


@pytest.mark.parametrize("case", golden(*CASES))
def test_empty_stream_is_absent_for_the_other(case, load_transformer, streams_of):
    model, (video, audio) = load_transformer(case), streams_of(case)
    empty = replace(
        audio,
        tokens=audio.tokens[:, :0],
        timesteps=audio.timesteps[:, :0],
        positions=audio.positions[:, :, :0],
    )
    velocity, nothing = model(video, empty)
    assert torch.equal(velocity, model(video, None)[0])
    assert nothing.shape == (2, 0, audio.tokens.shape[-1])


@pytest.mark.parametrize("case", golden("transformer/full_v25_uniform"))
def test_keyframe_marker_is_optional(case, load_transformer, streams_of):
    model, (video, audio) = load_transformer(case), streams_of(case)
    without = replace(video, keyframes_mask=None)
    blank = replace(video, keyframes_mask=torch.zeros_like(video.keyframes_mask))
    assert torch.equal(parts(model(without, audio)), parts(model(blank, audio)))
    assert not torch.equal(parts(model(without, audio)), parts(model(video, audio)))


@pytest.mark.parametrize("case", golden("transformer/full_v23_self_attention_mask"))
def test_one_strength_row_serves_all_queries(case, load_transformer, streams_of):
    model, (video, audio) = load_transformer(case), streams_of(case)
    row = torch.rand(1, 1, video.tokens.shape[1])
    square = row.expand(2, video.tokens.shape[1], -1)
    torch.testing.assert_close(
        parts(model(replace(video, attention_mask=row), audio)),
        parts(model(replace(video, attention_mask=square), audio)),
    )


@pytest.mark.parametrize("case", golden("transformer/full_v23_uniform"))
def test_static_prompt_tables(case, load_transformer, streams_of):
    """Without prompt AdaLN the table stands alone, as if the module always returned zero."""
    config = TransformerConfig.from_metadata(
        case.config["transformer"] | {"use_prompt_adaln_single": False}
    )
    with torch.device("meta"):
        static = Transformer(config)
    model = load_transformer(case)
    weights = {k: v for k, v in model.state_dict().items() if "prompt_adaln_single" not in k}
    static.load_state_dict(weights, assign=True, strict=True)
    for adaln in (model.prompt_adaln_single, model.audio_prompt_adaln_single):
        adaln.linear.weight.data = torch.zeros_like(adaln.linear.weight)
        adaln.linear.bias.data = torch.zeros_like(adaln.linear.bias)
    streams = streams_of(case)
    torch.testing.assert_close(parts(static(*streams)), parts(model(*streams)))


@pytest.mark.parametrize("case", golden("transformer/full_v23_uniform"))
def test_caller_sees_every_block_and_may_cancel(case, load_transformer, streams_of):
    model, seen = load_transformer(case), []
    model(*streams_of(case), on_block=seen.append)
    assert seen == list(range(model.config.num_layers))

    def cancel(index):
        if index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model(*streams_of(case), on_block=cancel)


@pytest.mark.parametrize("case", golden("transformer/full_v23_uniform"))
def test_wrong_inputs_are_named(case, load_transformer, streams_of):
    model, (video, audio) = load_transformer(case), streams_of(case)
    with pytest.raises(MismatchError, match="found neither"):
        model(None, None)
    with pytest.raises(MismatchError, match="audio context width must be 20, found 40"):
        model(video, replace(audio, context=video.context))
    with pytest.raises(MismatchError, match="video channels per token must be 8, found 6"):
        model(replace(video, tokens=audio.tokens), audio)
    with pytest.raises(MismatchError, match="audio position axes must be 1, found 3"):
        model(video, replace(audio, positions=video.positions))
    with torch.device("meta"):
        video_only = Transformer(model.config, "video")
    with pytest.raises(MismatchError, match="built for video takes no audio stream"):
        video_only(video, audio)


# Less memory -------------------------------------------------------------------------------------


def lengthened(side, times):
    """The tokens of a stream again and again, too many for one part of a feed-forward."""
    named = ("tokens", "timesteps")
    longer = {name: getattr(side, name).repeat(1, times, 1) for name in named}
    if side.keyframes_mask is not None:
        longer["keyframes_mask"] = side.keyframes_mask.repeat(1, times, 1)
    return replace(side, **longer, positions=side.positions.repeat(1, 1, times, 1))


@pytest.mark.parametrize("count", [2, 4, 7])
@pytest.mark.parametrize("case", golden(*CASES))
def test_feed_forward_in_parts_is_the_same_to_rounding(case, count, load_transformer, streams_of):
    """A product of fewer rows may add up in another order: the last bits of float32 differ."""
    model = load_transformer(case)
    streams = [lengthened(side, 90) for side in streams_of(case)]
    whole, again = parts(model(*streams)), parts(model(*streams))
    in_parts = parts(model(*streams, feed_forward_parts=count))
    assert torch.equal(whole, again)
    torch.testing.assert_close(in_parts, whole, rtol=1e-5, atol=5e-6)
    assert torch.equal(in_parts, parts(model(*streams, feed_forward_parts=count)))


@pytest.mark.parametrize("case", golden(*CASES))
def test_few_tokens_are_one_part_and_the_same_bits(case, load_transformer, streams_of):
    model, streams = load_transformer(case), streams_of(case)
    assert torch.equal(parts(model(*streams, feed_forward_parts=4)), parts(model(*streams)))


@pytest.mark.parametrize("feed_forward_parts", [1, 3])
@pytest.mark.parametrize("case", golden(*CASES))
def test_noise_levels_equal_a_timestep_for_every_token(
    case, feed_forward_parts, load_transformer, streams_of
):
    model = load_transformer(case)
    levels = torch.tensor([0.2, 0.55, 0.9])

    def both(side):
        side = lengthened(side, 60)
        rows, tokens = side.tokens.shape[:2]
        index = torch.randint(3, (rows, tokens), generator=torch.Generator().manual_seed(tokens))
        few = replace(side, timesteps=levels.expand(rows, 3)[..., None], levels=index)
        return few, replace(side, timesteps=levels[index][..., None])

    few, each = zip(*(both(side) for side in streams_of(case)), strict=True)
    found = parts(model(*few, feed_forward_parts=feed_forward_parts))
    torch.testing.assert_close(found, parts(model(*each)), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("case", golden(CASES[1]))
def test_inputs_are_not_written_into(case, load_transformer, streams_of):
    model, streams = load_transformer(case), [lengthened(s, 90) for s in streams_of(case)]
    before = [{k: v.clone() for k, v in vars(s).items() if torch.is_tensor(v)} for s in streams]
    model(*streams, feed_forward_parts=4)
    for side, tensors in zip(streams, before, strict=True):
        assert all(torch.equal(getattr(side, name), tensors[name]) for name in tensors)
