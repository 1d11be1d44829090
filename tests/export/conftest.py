"""A stand-in for torchtitan: packages with the call structure of the versions that generated modules are made for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import actune
from actune.plan import Plan

LOGGING = """
class logger:
    infos, warnings = [], []
    info = staticmethod(infos.append)
    warning = staticmethod(warnings.append)
"""

# As in 0.1.0: the function's home is one family's own file, from which the others import it.
PACKAGE_0_1_0 = {
    "tools/logging.py": LOGGING,
    "models/llama3/infra/parallelize.py": """
def apply_ac(model, ac_config):
    raise AssertionError("torchtitan's own AC was called")

def parallelize(model, mode):
    if mode != "none":
        apply_ac(model, mode)
""",
    "experiments/llama4/parallelize.py": """
from torchtitan.models.llama3.infra.parallelize import apply_ac

def parallelize(model, mode):
    if mode != "none":
        apply_ac(model, mode)
""",
}

# As in 0.2.0 and 0.2.2: distributed/activation_checkpoint.py, imported by every family.
_FAMILY = """
from torchtitan.distributed.activation_checkpoint import apply_ac

def parallelize(model, mode, compiles=False):
    if mode != "none":
        apply_ac(model, mode, model_compile_enabled=compiles, op_sac_save_list=set(), base_folder="")
"""
PACKAGE_0_2 = {
    "tools/logging.py": LOGGING,
    "distributed/activation_checkpoint.py": """
def apply_ac(model, ac_config, *, model_compile_enabled=False, op_sac_save_list=None, base_folder=""):
    raise AssertionError("torchtitan's own AC was called")
""",
    "models/llama3/infra/parallelize.py": _FAMILY,
    "models/qwen3/infra/parallelize.py": _FAMILY,
}

# As in 0.3.0: config/configurable.py, distributed/activation_checkpoint.py, a family's config_registry.py.
PACKAGE_0_3 = {
    "distributed/activation_checkpoint.py": """
from dataclasses import dataclass, replace

class ActivationCheckpointing:
    @dataclass(kw_only=True, slots=True)
    class Config:
        preserve_rng_state: bool = True
        def build(self, **kwargs):
            return self._owner(config=replace(self), **kwargs)

    def __init__(self, config, dump_folder=""):
        self.config, self.dump_folder = config, dump_folder

    def __init_subclass__(cls):
        cls.__dict__["Config"]._owner = cls

class MemoryBudgetAC(ActivationCheckpointing):
    @dataclass(kw_only=True, slots=True)
    class Config(ActivationCheckpointing.Config):
        memory_budget: float = 0.5
""",
    "models/llama3/config_registry.py": """
from dataclasses import dataclass, field

@dataclass(kw_only=True, slots=True)
class CompileConfig:
    enable: bool = False
    components: list = field(default_factory=lambda: ["model", "loss"])

@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    activation_checkpoint: object = None
    compile: CompileConfig = field(default_factory=CompileConfig)
    steps: int = 1

def llama3_debugmodel():
    return TrainerConfig(steps=10)

def llama3_compiled():
    return TrainerConfig(compile=CompileConfig(enable=True))
""",
}

Install = Callable[[dict[str, str]], Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a package `torchtitan` and the returned folder, for generated modules, on the import path.

    It hides the real one, which may be installed, or loaded by another test.
    """
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchtitan"]:
        monkeypatch.delitem(sys.modules, name)
    before = set(sys.modules)

    def install_files(files: dict[str, str]) -> Path:
        for name, source in files.items():
            path = tmp_path / "torchtitan" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
            for folder in path.relative_to(tmp_path).parents:
                if folder.name:
                    (tmp_path / folder / "__init__.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path

    yield install_files
    for name in set(sys.modules) - before:
        module: ModuleType = sys.modules[name]
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)) or name.startswith("torchtitan"):
            del sys.modules[name]


Applied = list[tuple[object, Plan, tuple[str, ...]]]


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> Applied:
    """The calls of `actune.apply_plan`, which does nothing else here."""
    calls: Applied = []
    monkeypatch.setattr(
        actune, "apply_plan", lambda model, plan, *, layer_fqns: calls.append((model, plan, layer_fqns)), raising=False
    )
    return calls


@pytest.fixture
def lru_cache_settings(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What Dynamo's process-wide setting was set to."""
    import torch

    settings: list[bool] = []
    monkeypatch.setattr(torch._C._dynamo.eval_frame, "_set_lru_cache", settings.append)
    return settings
