"""The models of `models.py`: configs in `architectures/` and torchtitan's flavors, and the plans each runs under."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from actune.plan import NO_AC, Plan, Treatment
from actune.plan.presets import preset_plan
from actune.profiler.stacks import is_block

FOLDER = Path(__file__).parent / "architectures"


@dataclass(frozen=True)
class Architecture:
    """A model of transformers, tiny.

    `config` is a file in FOLDER without its suffix; `tokens` and `examples` are the batch's size.
    """

    name: str
    config: str
    tokens: int | None = 64
    examples: int = 4

    @property
    def spec(self):
        seq = "" if self.tokens is None else f"&seq={self.tokens}"
        return f"hf:{FOLDER / self.config}.json?batch={self.examples}{seq}"


ARCHITECTURES = (
    Architecture("Llama", "llama"),
    Architecture("Qwen3", "qwen3"),
    Architecture("Qwen3-MoE", "qwen3-moe"),
    Architecture("Mixtral", "mixtral"),
    Architecture("Mixtral, loop over experts", "mixtral-loop"),
    Architecture("DeepSeek-V3", "deepseek-v3"),
    Architecture("GPT-OSS", "gpt-oss"),
    Architecture("Gemma 3", "gemma3"),
    Architecture("Gemma 3, multimodal, text alone", "gemma3-multimodal"),
    Architecture("GPT-NeoX", "gpt-neox"),
    Architecture("GPT-2", "gpt2"),
    Architecture("OPT", "opt"),
    Architecture("Falcon", "falcon"),
    Architecture("BERT", "bert"),
    Architecture("T5", "t5"),
    Architecture("BART", "bart"),
    Architecture("Whisper", "whisper", tokens=32),
    Architecture("ViT", "vit", tokens=None, examples=16),
    Architecture("Swin", "swin", tokens=None),
    Architecture("Mamba", "mamba", tokens=32),
    Architecture("Mamba-2", "mamba2", tokens=32),
    Architecture("Jamba", "jamba", tokens=32),
)


@dataclass(frozen=True)
class TorchtitanModel:
    """A model of torchtitan's registry, shrunk to a few layers."""

    name: str
    spec: str

    @property
    def config(self):
        return self.spec.partition("?")[0]


TORCHTITAN_MODELS = (
    TorchtitanModel("Llama 3", "torchtitan:llama3/debugmodel?layers=4&seq=256&batch=8"),
    TorchtitanModel("DeepSeek-V3", "torchtitan:deepseek_v3/debugmodel?layers=4&seq=256&batch=8"),
    TorchtitanModel("Qwen3", "torchtitan:qwen3/debugmodel?layers=4&seq=256&batch=8"),
)
"""With so many tokens that activations outweigh parameters and optimizer state."""


def plans_of(model: nn.Module, structure) -> dict[str, Plan]:
    """No AC, the presets, and a plan that gives each class of layers other treatments in turn.

    A split one among them: regions around a layer's parts, or around its first block where it has no two.
    """
    mixed = {}
    for layer_class in structure.classes:
        layer = model.get_submodule(layer_class.typical_fqn)
        parts = layer_class.parts or tuple(name for name, child in layer.named_children() if is_block(child))[:1]
        cycle = (
            Treatment("full"),
            Treatment("selective", wrap=parts),
            NO_AC,
            Treatment("selective"),
            Treatment("full", wrap=parts[:1]),
        )
        for fqn in layer_class.layer_fqns:
            mixed[fqn] = cycle[structure.layer_fqns.index(fqn) % len(cycle)]
    presets = {name: preset_plan(name, structure) for name in ("none", "full", "sac")}
    return {**presets, "mixed": Plan.from_treatments(mixed)}
