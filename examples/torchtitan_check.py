"""Checks an exported plan in torchtitan 0.3.0 itself, on a CPU: one of each kind of layer, forward and backward.

Install, in an environment of its own (Python 3.11; torchtitan's wheel asks for more than this check needs):

    pip install torch==2.13.0 'datasets<4.8' tensorboard
    pip install --no-deps torchtitan==0.3.0 torchdata torch_checkpointing spmd_types==0.2.3 tyro typeguard \
        docstring-parser safetensors tokenizers einops pillow triton
    pip install -e .
    python examples/torchtitan_check.py [--compile]

It exports a per-layer plan for the llama3 debug model (6 layers) as a config module, loads that through torchtitan's
own ConfigManager, builds the model, and applies the config's AC policy as torchtitan's parallelize.py does. It prints
what each layer became, and whether the loss and every gradient equal those of the same model without AC; it ends with
status 1 if not. With --compile each layer is compiled afterwards, as torchtitan does it, and gradients may differ by
rounding.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from torchtitan.config import ConfigManager
from torchtitan.models.common.attention import FlexAttention, ScaledDotProductAttention

from actune.export import export_plan, write_export
from actune.plan import Plan, Rule, Treatment
from actune.profiler import discover

PLAN_RULES = (
    Rule(("layers.0-1",), Treatment("full")),
    Rule(("layers.2",), Treatment("selective")),
    Rule(("layers.3",), Treatment("selective", save_every_nth_mm=0, save_ops=(), save=("attention.wo::mm",))),
    Rule(("layers.4",), Treatment("full", wrap=("attention", "feed_forward"))),
)
TOKENS_SHAPE = (2, 64)


def build_model(config):
    """The model on the CPU, with fixed weights; FlexAttention has no backward there, so SDPA stands in for it."""
    for _, _, parent, field in list(config.model_spec.model.traverse(FlexAttention.Config)):
        setattr(parent, field, ScaledDotProductAttention.Config())
    torch.manual_seed(0)
    model = config.model_spec.model.build()
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def loss_and_gradients(model):
    """Of one step on fixed tokens."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 1000, TOKENS_SHAPE, generator=generator)
    positions = torch.arange(TOKENS_SHAPE[1]).expand(TOKENS_SHAPE)
    loss = model(tokens, positions=positions).float().pow(2).mean()
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def load_config(plan, structure):
    """The config of the exported plan, as torchtitan's command line loads it."""
    export = export_plan(plan, structure, format="torchtitan", base="llama3:llama3_debugmodel", name="check")
    with tempfile.TemporaryDirectory() as folder:
        write_export(export, Path(folder))
        sys.path.insert(0, folder)
        return ConfigManager().parse_args(["--module", "check_config", "--config", "check"])


def main() -> int:
    """Runs the check and returns the exit status."""
    parser = argparse.ArgumentParser(description="Checks an exported plan in torchtitan 0.3.0.")
    parser.add_argument("--compile", action="store_true", help="compile each layer, as torchtitan does")
    compiles = parser.parse_args().compile
    torch.set_num_threads(1)

    from torchtitan.models.llama3.config_registry import llama3_debugmodel

    reference = build_model(llama3_debugmodel())
    plan = Plan(PLAN_RULES, compile="layer" if compiles else "off")
    config = load_config(plan, discover(reference))
    print(f"policy: {type(config.activation_checkpoint).__qualname__}, compile: {config.compile}")

    model = build_model(config)
    config.activation_checkpoint.build(dump_folder="").apply(model)
    if compiles:
        for layer in model.layers.children():
            layer.compile(backend=config.compile.backend, fullgraph=True)
    for name, layer in model.layers.named_children():
        print(f"layers.{name}: {type(layer).__name__}, attention: {type(layer.attention).__name__}")

    loss, gradients = loss_and_gradients(model)
    expected_loss, expected = loss_and_gradients(reference)
    # Fused kernels round differently, so bitwise equality can only be asked of the eager run.
    tolerance = 1e-4 if compiles else 0.0
    worst = max(((gradients[name] - grad).norm() / grad.norm()).item() for name, grad in expected.items())
    loss_error = ((loss - expected_loss).abs() / expected_loss).item()
    equal = gradients.keys() == expected.keys() and worst <= tolerance and loss_error <= tolerance
    print(f"loss {loss.item():.6f}, without AC {expected_loss.item():.6f}; largest relative gradient error {worst:.2e}")
    print("equal" if equal else "NOT EQUAL")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
