"""From prompts and guides to a clip: one file per use case, each a chain of a few calls.

`one_stage` is the shortest; `run` holds the blocks that all are made of, `stage` one sampling
stage, `guides` what may be given beside the prompt, `networks` where the weights come from::

    networks = Networks.of("ltx-2.3-22b-dev.safetensors", "gemma_3_12B_it.safetensors")
    contexts = Contexts(*encode_prompts(networks, ["A fox runs over snow.", NEGATIVE_PROMPT]))
    clip = AVLatent(None, None, frames=121, height=512, width=768, fps=24.0)
    clip = one_stage(Run(networks, seed=10), clip, contexts)
"""
