"""The default negative prompt of undistilled sampling."""

# Tags of the training captions first, then the faults by kind. 2.0, 2.3 and 2.5.
_GROUPS = (
    "has_subtitles, has_blurbox, transition from black, transition to black, speech_ending_short",
    "blurred, soft focus, too dark, too bright, flat contrast, faded colours, noisy, grainy, "
    "badly lit, flickering, smeared motion",
    "wrong body proportions, waxy or odd skin colour, deformed or lopsided face, missing features, "
    "surplus arms or legs, mangled hands, wrong number of fingers",
    "garbled lettering, broken perspective, shaky camera, misplaced depth of field, "
    "distractingly sharp or cluttered background, stray reflections, harsh or changing light, "
    "colour banding",
    "cartoon look, computer-generated look, implausible materials, uncanny face, "
    "wrong ethnicity or gender, overacted expression, eyes looking the wrong way, tilted frame, "
    "dull lighting, oversaturated, heavy filter, generated-image artefacts",
    "lips out of sync, no sound, muted, distorted voice, robotic voice, echo, background hiss, "
    "audio running ahead or behind, wrong words, invented dialogue, repeated dialogue",
    "jerky movement, awkward pauses, bad timing, unnatural cuts",
)

NEGATIVE_PROMPT = ", ".join(_GROUPS)
