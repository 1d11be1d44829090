"""The module for custom_import, run against a package with torchtitan's call structure."""

from importlib import import_module

import pytest

from actune.errors import PlanError
from actune.export import export_plan, write_export
from actune.plan import Treatment
from tests.export.conftest import PACKAGE_0_1_0, PACKAGE_0_2, Applied, Install
from tests.export.models import MIXED, SIX_LAYERS, plan_of, stack_of


def export_into(folder: object, version: str, compile: str = "off") -> None:
    plan = plan_of(*((rule.layers[0], rule.treatment) for rule in MIXED.rules), compile=compile)
    export = export_plan(plan, SIX_LAYERS, format="torchtitan-toml", version=version, name="Run 1")
    assert [name for name, _ in export.files] == ["run_1.toml", "run_1_ac.py"]
    write_export(export, folder)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", ["0.2.0", "0.2.2"])
def test_families_imported_before_and_after_apply_the_plan(version: str, install: Install, applied: Applied) -> None:
    folder = install(PACKAGE_0_2)
    export_into(folder, version)
    before = import_module("torchtitan.models.llama3.infra.parallelize")
    import_module("run_1_ac")
    after = import_module("torchtitan.models.qwen3.infra.parallelize")
    for family in (before, after):
        model = stack_of(range(6))
        family.parallelize(model, "full")
        assert applied.pop() == (model, MIXED.canonical_for(SIX_LAYERS.layer_fqns), SIX_LAYERS.layer_fqns)
    before.parallelize(model, "none")
    assert applied == []


def test_0_1_0_applies_the_plan(install: Install, applied: Applied) -> None:
    export_into(install(PACKAGE_0_1_0), "0.1.0")
    other = import_module("torchtitan.experiments.llama4.parallelize")
    import_module("run_1_ac")
    for family in (import_module("torchtitan.models.llama3.infra.parallelize"), other):
        family.parallelize(stack_of(range(6)), "full")
        assert applied.pop()[1] == MIXED.canonical_for(SIX_LAYERS.layer_fqns)


@pytest.mark.parametrize(("version", "settings"), [("0.2.0", []), ("0.2.2", [False])])
def test_compiled_layers_are_left_to_torchtitan(
    version: str, settings: list[bool], install: Install, applied: Applied, lru_cache_settings: list[bool]
) -> None:
    export_into(install(PACKAGE_0_2), version, compile="layer")
    import_module("run_1_ac")
    family = import_module("torchtitan.models.llama3.infra.parallelize")
    model = stack_of(range(6))
    first = model.get_submodule("layers.0")
    first.compile(backend="eager")
    family.parallelize(model, "full", compiles=True)
    assert applied[0][1].compile == "layer"
    assert first._compiled_call_impl is None
    assert lru_cache_settings == settings


@pytest.mark.parametrize("planned", [True, False])
def test_another_compile_is_followed_with_a_warning(
    planned: bool, install: Install, applied: Applied, lru_cache_settings: list[bool]
) -> None:
    export_into(install(PACKAGE_0_2), "0.2.2", compile="layer" if planned else "off")
    import_module("run_1_ac")
    import_module("torchtitan.models.llama3.infra.parallelize").parallelize(
        stack_of(range(6)), "full", compiles=not planned
    )
    assert applied[0][1].compile == ("off" if planned else "layer")
    assert import_module("torchtitan.tools.logging").logger.warnings == [
        f"The plan was measured with compiled layers: {planned}, here: {not planned}"
    ]


def test_another_model_is_an_error(install: Install, applied: Applied) -> None:
    export_into(install(PACKAGE_0_2), "0.2.2")
    import_module("run_1_ac")
    with pytest.raises(PlanError, match=r"made for a model with layers\.0-5; this model has layers\.0-7"):
        import_module("torchtitan.models.llama3.infra.parallelize").parallelize(stack_of(range(8)), "full")
    assert applied == []


def test_another_version_of_torchtitan_is_an_error(install: Install) -> None:
    folder = install({**PACKAGE_0_2, "distributed/activation_checkpoint.py": ""})
    export_into(folder, "0.2.2")
    with pytest.raises(ImportError, match=r"has no apply_ac: this module was made for torchtitan 0\.2\.2"):
        import_module("run_1_ac")


def test_line_length_and_names_of_the_sources_are_fit_to_read() -> None:
    plan = plan_of(("layers.0", Treatment("full")))
    for version in ("0.1.0", "0.2.0", "0.2.2"):
        _, (_, source) = export_plan(plan, SIX_LAYERS, format="torchtitan-toml", version=version, name="x").files
        compile(source, "x_ac.py", "exec")
        assert max(map(len, source.splitlines())) <= 120
        assert f"torchtitan {version}" in source
