"""Every spelling of an adapter key, resolved through the real module list of the model."""

from __future__ import annotations

from collections.abc import Collection

from ..keymap import split

# "refused" changes what cannot be expressed as a delta of a linear.
_ROLES = {
    "down": (
        *(".lora_A.weight", ".lora_A.default.weight", ".lora_down.weight", ".lora.down.weight"),
        *(".lora_A", ".lora_linear_layer.down.weight", "_lora.down.weight"),
    ),
    "up": (
        *(".lora_B.weight", ".lora_B.default.weight", ".lora_up.weight", ".lora.up.weight"),
        *(".lora_B", ".lora_linear_layer.up.weight", "_lora.up.weight"),
    ),
    "alpha": (".alpha",),
    "dora_scale": (".dora_scale",),
    "magnitude": (".lora_magnitude_vector", ".lora_magnitude_vector.weight"),
    **{f"lokr_{part}": (f".lokr_{part}",) for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")},
    "diff": (".diff",),
    "diff_b": (".diff_b",),
    "refused": (".lora_mid.weight", ".lokr_t2", ".set_weight", ".reshape_weight"),
}
SUFFIXES = {suffix: role for role, suffixes in _ROLES.items() for suffix in suffixes}

# What writers put in front of a module, outermost first; several may follow each other.
_WRAPPERS = (
    "base_model.model.",  # PEFT
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",  # diffusers; the Gemma adapters write text_encoders.transformer.model.
    "text_encoders.",
    "model.",
)
_UNDERSCORED = "lora_unet_"  # kohya: dots of the module become underscores
_TEXT_SIDE = (
    "text_embedding_projection",
    "text_encoder",
    "lora_te",
    "connectors.",
    *(f"{side}embeddings_connector" for side in ("video_", "audio_", "")),
)
_DIFFUSERS_CONNECTORS = "connectors."


def split_key(key: str) -> tuple[str, str] | None:
    """(base, role) of an adapter key, None for a key with no known suffix."""
    for suffix, role in SUFFIXES.items():
        if key.endswith(suffix):
            return key[: -len(suffix)], role
    return None


def is_text_side(base: str) -> bool:
    """Whether a base names a part of the text encoding: Gemma, projection or connectors."""
    return any(name.startswith(_TEXT_SIDE) for name in _unwrapped(base))


class ModuleNames:
    """Looks adapter bases up among the modules that exist; nothing is guessed from dots."""

    def __init__(self, modules: Collection[str]):
        self.modules = frozenset(modules)
        self.by_underscores = {name.replace(".", "_"): name for name in self.modules}

    def find(self, base: str) -> str | None:
        """Module that `base` means: the native name first, then the diffusers renames."""
        for name in _unwrapped(base):
            if name in self.modules:
                return name
            if (native := _native(name)) in self.modules:
                return native
            if name.startswith(_UNDERSCORED):
                return self.by_underscores.get(name.removeprefix(_UNDERSCORED))
        return None


def stream_of(module: str) -> str:
    """ "video" or "audio": the stream whose strength a module takes."""
    for segment in module.split("."):
        if segment == "audio_to_video_attn":
            return "video"
        if segment.startswith("audio_") or segment == "video_to_audio_attn":
            return "audio"
        if segment in ("av_ca_audio_scale_shift_adaln_single", "av_ca_v2a_gate_adaln_single"):
            return "audio"
    return "video"


def _unwrapped(base: str) -> list[str]:
    """`base` and what remains of it as the wrappers are taken off one by one."""
    names = [base]
    while wrapper := next((w for w in _WRAPPERS if names[-1].startswith(w)), None):
        names.append(names[-1].removeprefix(wrapper))
    return names


def _native(name: str) -> str:
    """Native name of a diffusers module name."""
    component = "transformer"
    if name.startswith(_DIFFUSERS_CONNECTORS):
        component, name = "connectors", name.removeprefix(_DIFFUSERS_CONNECTORS)
    (table,) = split([name], "diffusers", "", [component]).values()
    return next(iter(table))
