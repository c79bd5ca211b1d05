"""Sound to latent and back, on fixtures and on the audio parts of the tiny checkpoints."""

import pytest
import torch
from goldens import Case, golden

from aiprod_engine.models.audio_vae import codec
from aiprod_engine.models.audio_vae.codec import decode_audio, encode_audio, fit_track
from aiprod_engine.models.audio_vae.mel import waveform_to_mel


@pytest.mark.parametrize("case", golden("audio/decode_audio_*"))
def test_decode_matches_reference(case, build):
    decoder = build("decoder", case.config, case.weights)
    vocoder = build("vocoder", case.config, case.weights)
    waveform, rate = decode_audio(decoder, vocoder, case.inputs["latent"])
    case.check("mel", decoder(case.inputs["latent"]))
    case.check("waveform", waveform[0])  # the reference drops a batch of one, we do not
    assert rate == case.call["sampling_rate"]
    assert isinstance(rate, int)


@pytest.mark.parametrize("case", golden("audio/encode_audio_tiny"))
def test_encode_matches_reference(case, build):
    encoder = build("encoder", case.config, case.weights)
    rate, waveform = case.call["sample_rate"], case.inputs["waveform"]
    case.check("mel", waveform_to_mel(waveform, rate))
    case.check("latent", encode_audio(encoder, waveform, rate))


@pytest.mark.parametrize("case", golden("audio/encode_audio_tiny"))
def test_mono_and_short_clips_encode(case, build):
    encoder = build("encoder", case.config, case.weights)
    mono = case.inputs["waveform"][:, :1]
    doubled = encode_audio(encoder, mono.expand(-1, 2, -1), 44100)
    assert torch.equal(encode_audio(encoder, mono, 44100), doubled)
    assert encode_audio(encoder, mono[..., :1], 44100).shape == (1, 2, 2, 16)  # 1024 samples


@pytest.mark.parametrize("case", golden("audio/decode_audio_23_tiny"))
def test_bf16_decoder_feeds_a_float32_vocoder(case, build):
    decoder = build("decoder", case.config, case.weights).bfloat16()
    vocoder = build("vocoder", case.config, case.weights)
    waveform, _ = decode_audio(decoder, vocoder, case.inputs["latent"])
    assert waveform.dtype == torch.float32
    assert torch.isfinite(waveform).all()


@pytest.mark.parametrize("case", golden("checkpoints/ltx2_2[03]_tiny.expected"))
def test_tiny_checkpoints(case, build):
    """The audio parts of a whole file, lifted from bf16 to fp32."""
    source = Case(case.name.removesuffix(".expected"))
    encoder, decoder, vocoder = (
        build(part, source.config, source.tensors) for part in ("encoder", "decoder", "vocoder")
    )
    case.check("audio_encoder.latent", encoder(case.inputs["audio_encoder.mel"]))
    case.check("audio_decoder.mel", decoder(case.inputs["audio_decoder.latent"]))
    case.check("vocoder.wave", vocoder(case.inputs["vocoder.mel"]))


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="needs torch 2.9")
def test_a_vocoder_convolves_in_full_precision():
    conv, cuda = torch.backends.cudnn.conv, torch.device("cuda")
    before = conv.fp32_precision
    assert before == "tf32"  # what cuDNN does unless it is told
    with codec._exact_convolutions(cuda):
        assert conv.fp32_precision == "ieee"
        torch.nn.functional.conv1d(torch.ones(1, 2, 9), torch.ones(3, 2, 3))  # reads the switch
    assert conv.fp32_precision == before
    with pytest.raises(KeyboardInterrupt), codec._exact_convolutions(cuda):
        raise KeyboardInterrupt
    assert conv.fp32_precision == before


def test_track_is_cropped_and_padded_only_on_request():
    wave = torch.arange(10.0).reshape(1, 1, 10)
    assert torch.equal(fit_track(wave, 4), wave[..., :4])
    assert torch.equal(fit_track(wave, 12), wave)
    padded = fit_track(wave, 12, pad=True)
    assert torch.equal(padded, torch.cat((wave, torch.zeros(1, 1, 2)), dim=-1))
