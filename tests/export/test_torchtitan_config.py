"""The config module for torchtitan 0.3.0, run against a package with its call structure."""

from importlib import import_module
from typing import Any

import pytest

from actune.errors import UsageError
from actune.export import Export, export_plan, write_export
from actune.plan import Plan, Treatment
from tests.export.conftest import PACKAGE_0_3, Applied, Install
from tests.export.models import MIXED, SIX_LAYERS, plan_of, stack_of, structure_of

BASE = "llama3:llama3_debugmodel"


def config_export(plan: Plan, **options: Any) -> Export:
    return export_plan(plan, SIX_LAYERS, format="torchtitan", **{"name": "Run-1", **options})


def load(folder: object, plan: Plan, **options: Any) -> Any:
    write_export(config_export(plan, **options), folder)  # type: ignore[arg-type]
    return import_module("run_1_config")


def test_config_function_applies_the_plan(install: Install, applied: Applied) -> None:
    config = load(install(PACKAGE_0_3), MIXED, base=BASE).run_1()
    assert config.steps == 10
    assert not config.compile.enable
    model = stack_of(range(6))
    config.activation_checkpoint.build(dump_folder="out").apply(model)
    assert applied == [(model, MIXED.canonical_for(SIX_LAYERS.layer_fqns), SIX_LAYERS.layer_fqns)]


def test_without_base_there_is_a_helper_only(install: Install) -> None:
    module = load(install(PACKAGE_0_3), MIXED)
    assert not hasattr(module, "run_1")
    assert "from run_1_config import with_actune" in module.__doc__
    own = import_module("torchtitan.models.llama3.config_registry").llama3_debugmodel()
    assert type(module.with_actune(own).activation_checkpoint) is module.ActuneAC.Config
    assert own.activation_checkpoint is None


@pytest.mark.parametrize(
    ("compile", "function", "expected"),
    [
        ("off", "llama3_debugmodel", (False, ["model", "loss"])),
        ("off", "llama3_compiled", (True, ["loss"])),
        ("layer", "llama3_debugmodel", (True, ["model"])),
        ("layer", "llama3_compiled", (True, ["model", "loss"])),
    ],
)
def test_compile_follows_the_plan_and_the_loss_the_base(
    compile: str, function: str, expected: tuple[bool, list[str]], install: Install
) -> None:
    plan = plan_of(("layers.*", Treatment("full")), compile=compile)
    config = load(install(PACKAGE_0_3), plan, base=f"torchtitan.models.llama3.config_registry:{function}").run_1()
    assert (config.compile.enable, config.compile.components) == expected


def test_compiled_layers_are_left_to_torchtitan(
    install: Install, applied: Applied, lru_cache_settings: list[bool]
) -> None:
    config = load(install(PACKAGE_0_3), plan_of(("layers.*", Treatment("full")), compile="layer"), base=BASE).run_1()
    model = stack_of(range(6))
    model.get_submodule("layers.0").compile(backend="eager")
    config.activation_checkpoint.build().apply(model)
    assert applied[0][1].compile == "layer"
    assert model.get_submodule("layers.0")._compiled_call_impl is None
    assert lru_cache_settings == [False]


def test_second_call_for_a_part_of_the_model_changes_nothing(install: Install, applied: Applied) -> None:
    policy = load(install(PACKAGE_0_3), MIXED, base=BASE).run_1().activation_checkpoint.build()
    model = stack_of(range(6))
    model.vision_encoder = stack_of(range(2))
    policy.apply(model)
    policy.apply(model.vision_encoder)
    assert len(applied) == 1


def test_options_beside_the_plan_are_an_error(install: Install, applied: Applied) -> None:
    ac_config = load(install(PACKAGE_0_3), MIXED, base=BASE).run_1().activation_checkpoint
    ac_config.preserve_rng_state = False
    with pytest.raises(ValueError, match="The plan decides all of AC"):
        ac_config.build().apply(stack_of(range(6)))
    assert applied == []


def test_one_memory_budget_is_torchtitans_own_policy(install: Install) -> None:
    plan = plan_of(("layers.*", Treatment("memory_budget", memory_budget=0.25)), compile="layer")
    config = load(install(PACKAGE_0_3), plan, base=BASE).run_1()
    assert type(config.activation_checkpoint).__qualname__ == "MemoryBudgetAC.Config"
    assert config.activation_checkpoint.memory_budget == 0.25
    assert config.compile.enable


def test_mixed_memory_budgets_are_an_error_or_a_loss(install: Install, applied: Applied) -> None:
    budget = Treatment("memory_budget", memory_budget=0.25)
    plan = plan_of(("layers.0-2", budget), ("layers.4", Treatment("selective")), compile="layer", target="t")
    with pytest.raises(
        UsageError, match=r'policy "memory_budget" on layers\.0-2: torchtitan 0\.3\.0 has one .*--approx'
    ):
        config_export(plan)
    export = config_export(plan, approximate=True)
    assert export.lost == (
        "policy: full AC instead of memory_budget on layers.0-2: torchtitan 0.3.0 has one memory budget for all "
        "layers, and the others have none or another.",
    )
    module = load(install(PACKAGE_0_3), plan, approximate=True)
    assert 'target = "t"' in module.PLAN
    assert 'policy = "full"' in module.PLAN
    assert "memory_budget" not in module.PLAN


@pytest.mark.parametrize("compile", ["inside", "model"])
def test_other_compiles_are_an_error_or_a_loss(compile: str) -> None:
    plan = plan_of(("layers.*", Treatment("full")), compile=compile)
    with pytest.raises(UsageError, match=f'compile = "{compile}": .* but torchtitan compiles'):
        config_export(plan)
    export = config_export(plan, approximate=True)
    assert export.lost[0].startswith(f'compile: "layer" instead of "{compile}"')
    assert "'compile = \"layer\"\\n'" in export.files[0][1]


@pytest.mark.parametrize(
    "base", ["llama3", "llama3:", ":f", "a-b:f", "llama3:f()", "x:import", "x:f\nimport os", "x..y:f"]
)
def test_base_of_another_form(base: str) -> None:
    with pytest.raises(UsageError, match=r"does not name a config function\. Expected MODULE:FUNCTION"):
        config_export(MIXED, base=base)


def test_name_that_the_module_uses_itself_is_not_shadowed(install: Install, applied: Applied) -> None:
    folder = install(PACKAGE_0_3)
    write_export(config_export(MIXED, base=BASE, name="actune"), folder)
    module = import_module("actune_config")
    module.actune_config().activation_checkpoint.build().apply(stack_of(range(6)))
    assert len(applied) == 1


def test_stacks_of_parts_are_reached_and_others_are_not() -> None:
    plan = plan_of(("*", Treatment("full")))
    export_plan(plan, structure_of("layers.0", "vision_encoder.layers.0"), format="torchtitan", name="x")
    with pytest.raises(
        UsageError, match=r"torchtitan 0\.3\.0 applies AC to the children of `layers`.*double_blocks\.0"
    ):
        export_plan(plan, structure_of("layers.0", "double_blocks.0"), format="torchtitan", name="x")
