"""Keys of [activation_checkpoint] and compile. Expected values are read from the sources of each torchtitan version."""

import tomllib

import pytest

from actune.errors import PlanError, UsageError
from actune.export import Export, export_plan
from actune.export.torchtitan_fields import nearest_fields
from actune.export.torchtitan_versions import VERSIONS
from actune.plan import Plan, Treatment
from actune.records import LayerClass, ModelStructure
from tests.export.models import MIXED, SIX_LAYERS, plan_of, structure_of

# torchtitan/models/llama3/infra/parallelize.py of each version: `_save_list`, `_op_sac_save_list`.
SAVED_0_1_0 = (
    "mm",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention",
    "_c10d_functional.reduce_scatter_tensor",
    "max",
)
SAVED_0_2_0 = (*SAVED_0_1_0, "flex_attention")
SAVED_0_2_2 = (
    *SAVED_0_2_0,
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_fused_attention_overrideable",
    "torch_attn._varlen_attn",
    "inductor_compiled_code",
)


def toml_export(plan: Plan, version: str = "0.2.2", **options: object) -> Export:
    return export_plan(plan, SIX_LAYERS, format="torchtitan-toml", version=version, name="s", **options)  # type: ignore[arg-type]


def keys(plan: Plan, version: str = "0.2.2", **options: object) -> dict[str, dict[str, object]]:
    return tomllib.loads(toml_export(plan, version, **options).files[0][1])


def uniform(treatment: Treatment, compile: str = "off") -> Plan:
    return plan_of(("layers.*", treatment), compile=compile)


def full(**knobs: object) -> Treatment:
    return Treatment("full", **knobs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("version", "treatment", "expected"),
    [
        # 0.1.0: ptd_checkpoint_wrapper(module, preserve_rng_state=False), early_stop left to PyTorch, where it is True.
        ("0.1.0", full(preserve_rng_state=False), {"mode": "full"}),
        # 0.2.0: early_stop: bool = False is a key, preserve_rng_state=False is fixed.
        ("0.2.0", full(preserve_rng_state=False), {"mode": "full", "early_stop": True}),
        ("0.2.0", full(preserve_rng_state=False, early_stop=False), {"mode": "full", "early_stop": False}),
        # 0.2.2: preserve_rng_state: bool = True is a key.
        ("0.2.2", full(), {"mode": "full", "early_stop": True, "preserve_rng_state": True}),
        ("0.2.2", Treatment("none"), {"mode": "none"}),
        (
            "0.1.0",
            Treatment("selective", save_ops=SAVED_0_1_0, preserve_rng_state=False),
            {"mode": "selective", "selective_ac_option": "op"},
        ),
        (
            "0.2.0",
            Treatment("selective", save_ops=SAVED_0_2_0, preserve_rng_state=False),
            # The filter's default is ["moe.router.gate"], so no filter must be said.
            {
                "mode": "selective",
                "selective_ac_option": "op",
                "per_op_sac_force_recompute_mm_shapes_by_fqns": [],
                "early_stop": True,
            },
        ),
        (
            "0.2.2",
            Treatment("selective", save_ops=SAVED_0_2_2, filter_fqns=("attention.wq",), early_stop=False),
            {
                "mode": "selective",
                "selective_ac_option": "op",
                "per_op_sac_force_recompute_mm_shapes_by_fqns": ["attention.wq"],
                "early_stop": False,
                "preserve_rng_state": True,
            },
        ),
    ],
)
def test_uniform_plan_becomes_keys(version: str, treatment: Treatment, expected: dict[str, object]) -> None:
    export = toml_export(uniform(treatment), version)
    assert len(export.files) == 1
    assert export.lost == ()
    assert tomllib.loads(export.files[0][1])["activation_checkpoint"] == expected


def test_memory_budget_becomes_keys() -> None:
    made = keys(uniform(Treatment("memory_budget", memory_budget=0.3), "layer"))
    assert made["activation_checkpoint"] == {"mode": "memory_budget", "memory_budget": 0.3}
    assert made["compile"] == {"enable": True, "components": ["model"]}


@pytest.mark.parametrize(
    ("layers", "n"), [("layers.1 layers.3 layers.5", "2"), ("layers.2 layers.5", "3"), ("layers.4", "5")]
)
def test_full_on_every_nth_layer_counts_from_one(layers: str, n: str) -> None:
    export = toml_export(plan_of(*((fqn, full()) for fqn in layers.split())))
    assert export.lost == ()
    assert len(export.files) == 1
    section = tomllib.loads(export.files[0][1])["activation_checkpoint"]
    assert section == {
        "mode": "selective",
        "selective_ac_option": n,
        "early_stop": True,
        "preserve_rng_state": True,
    }
    assert "pipeline stage" in export.next_steps


def test_other_layers_of_full_need_a_module_or_keep_no_more() -> None:
    plan = plan_of(("layers.0-1", full()))
    assert [name for name, _ in toml_export(plan).files] == ["s.toml", "s_ac.py"]
    export = toml_export(plan, approximate=True)
    assert [name for name, _ in export.files] == ["s.toml"]
    assert tomllib.loads(export.files[0][1])["activation_checkpoint"]["selective_ac_option"] == "3"
    assert export.lost == (
        "layers: full AC on layers.2, layers.5 instead of on layers.0-1, because the fields of torchtitan know every "
        "n-th layer only.",
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_the_presets_of_uniform_plans_are_keys_with_a_note(version: str) -> None:
    """The default save list is each version's own, and its fixed random state is no matter to its own models."""
    export = toml_export(uniform(Treatment("selective")), version)
    assert [name for name, _ in export.files] == ["s.toml"]
    section = tomllib.loads(export.files[0][1])["activation_checkpoint"]
    assert (section["mode"], section["selective_ac_option"]) == ("selective", "op")
    assert section.get("per_op_sac_force_recompute_mm_shapes_by_fqns", []) == []
    assert export.lost == ()
    assert f'note: save_ops = "default" is torchtitan {version}\'s own list here (' in export.next_steps
    assert ("note: preserve_rng_state is false" in export.next_steps) == (version != "0.2.2")
    assert [name for name, _ in toml_export(uniform(full()), version).files] == ["s.toml"]


@pytest.mark.parametrize("checkpointed", range(1, 7))
def test_every_nth_approximation_checkpoints_no_fewer_layers(checkpointed: int) -> None:
    treatments = {
        fqn: full() if at < checkpointed else Treatment("none") for at, fqn in enumerate(SIX_LAYERS.layer_fqns)
    }
    values = nearest_fields(treatments, VERSIONS["0.2.2"]).values
    n = 1 if values["mode"] == "full" else int(values["selective_ac_option"])
    assert 6 // n >= checkpointed


@pytest.mark.parametrize(
    ("version", "treatment", "line"),
    [
        (
            "0.2.2",
            full(wrap=("attention",)),
            "wrap: the whole layer instead of attention; torchtitan wraps layers only.",
        ),
        (
            "0.1.0",
            full(preserve_rng_state=False, early_stop=False),
            "early_stop: true instead of false; torchtitan 0.1.0 has",
        ),
        (
            "0.2.2",
            Treatment("selective", save_ops=(*SAVED_0_2_2, "grouped_mm")),
            "save_ops: torchtitan 0.2.2 has a list of its own (",
        ),
        (
            "0.2.2",
            Treatment("selective", save_ops=SAVED_0_2_2, save_every_nth_mm=1),
            "save_every_nth_mm: 2 instead of 1, which is fixed in torchtitan: matmuls 1, 3, 5, … are saved.",
        ),
        (
            "0.2.2",
            Treatment("selective", save_ops=SAVED_0_2_2, save=("attention.wo::mm",)),
            "save: not said: attention.wo::mm; torchtitan saves by kind of op, not by name",
        ),
        (
            "0.2.2",
            Treatment("selective", save_ops=SAVED_0_2_2, filter_fqns=("wq",), filter_by="name"),
            "filter_by: shape instead of name: every matmul of a named Linear's shape is recomputed.",
        ),
        (
            "0.1.0",
            Treatment("selective", save_ops=SAVED_0_1_0, preserve_rng_state=False, filter_fqns=("wq",)),
            "filter_fqns: not said: wq; 0.1.0 has no such key.",
        ),
    ],
)
def test_what_keys_cannot_say(version: str, treatment: Treatment, line: str) -> None:
    approximation = toml_export(uniform(treatment), version, approximate=True)
    assert len(approximation.lost) == 1
    assert approximation.lost[0].startswith(line)
    assert len(approximation.files) == 1
    exact = toml_export(uniform(treatment), version)
    assert exact.lost == ()
    assert [name for name, _ in exact.files] == ["s.toml", "s_ac.py"]
    assert approximation.lost[0] in exact.next_steps


def test_mixture_becomes_what_most_layers_get() -> None:
    plan = plan_of(("layers.0-3", full()), ("layers.4-5", Treatment("selective")))
    export = toml_export(plan, approximate=True)
    assert tomllib.loads(export.files[0][1])["activation_checkpoint"]["mode"] == "full"
    assert export.lost == (
        "layers: layers.4-5 get what the other layers get (full), because the fields of torchtitan treat all layers "
        "alike.",
    )


@pytest.mark.parametrize(
    ("version", "compile", "expected"),
    [
        ("0.1.0", "off", {"training": {"compile": False}}),
        ("0.1.0", "layer", {"training": {"compile": True}}),
        ("0.2.0", "off", {"compile": {"enable": False}}),
        ("0.2.2", "layer", {"compile": {"enable": True, "components": ["model"]}}),
    ],
)
def test_compile_keys(version: str, compile: str, expected: dict[str, object]) -> None:
    made = keys(uniform(full(preserve_rng_state=False), compile), version)
    del made["activation_checkpoint"]
    assert made == expected


@pytest.mark.parametrize(
    ("compile", "section", "expected"),
    [
        # 0.2.2, job_config.py: enable: bool = False, components default to ["model", "loss"].
        ("off", "enable = true", {"enable": True, "components": ["loss"]}),
        ("off", 'enable = true\ncomponents = ["model"]', {"enable": False, "components": ["model"]}),
        ("off", "enable = false", {"enable": False}),
        ("layer", 'enable = true\ncomponents = ["loss"]', {"enable": True, "components": ["model", "loss"]}),
        ("layer", "enable = false", {"enable": True, "components": ["model"]}),
    ],
)
def test_compile_of_the_loss_stays_as_the_file_has_it(compile: str, section: str, expected: dict[str, object]) -> None:
    made = keys(uniform(full(), compile), into=f"[compile]\n{section}\n")
    assert made["compile"] == expected


@pytest.mark.parametrize("compile", ["inside", "model"])
def test_other_compiles_are_an_error_or_a_loss(compile: str) -> None:
    with pytest.raises(UsageError, match=rf'compile = "{compile}": .*--approximate'):
        toml_export(uniform(full(), compile))
    export = toml_export(uniform(full(), compile), approximate=True)
    assert export.lost[0].startswith(f'compile: "layer" instead of "{compile}": ')
    assert tomllib.loads(export.files[0][1])["compile"] == {"enable": True, "components": ["model"]}


@pytest.mark.parametrize("version", ["0.1.0", "0.2.2"])
def test_mixed_memory_budgets_are_an_error_or_a_loss(version: str) -> None:
    budget = Treatment("memory_budget", memory_budget=0.5)
    plan = plan_of(("layers.0-4", budget), ("layers.5", full()), compile="layer")
    with pytest.raises(
        UsageError, match=rf'policy "memory_budget": torchtitan {version} .*lose this: layers: layers.5'
    ):
        toml_export(plan, version)
    export = toml_export(plan, version, approximate=True)
    mode = tomllib.loads(export.files[0][1])["activation_checkpoint"]["mode"]
    assert mode == ("full" if version == "0.1.0" else "memory_budget")
    assert any("full AC, which keeps no more" in line for line in export.lost) == (version == "0.1.0")


def test_merge_keeps_comments_order_and_other_keys() -> None:
    into = (
        "# my run\n[model]\nname = 'llama3'  # the small one\n\n[activation_checkpoint]\n"
        'mode = "selective"  # was chosen by hand\ndebug = true\n\n[training]\nsteps = 5\n'
    )
    text = toml_export(uniform(full()), into=into).files[0][1]
    for kept in ("# my run\n", "name = 'llama3'  # the small one", "# was chosen by hand", "debug = true", "steps = 5"):
        assert kept in text
    assert (
        text.index("[model]")
        < text.index("[activation_checkpoint]")
        < text.index("[training]")
        < text.index("[compile]")
    )
    made = tomllib.loads(text)
    assert made["activation_checkpoint"] == {
        "mode": "full",
        "debug": True,
        "early_stop": True,
        "preserve_rng_state": True,
    }


@pytest.mark.parametrize(
    "into",
    [
        "compile = {enable = true, backend = 'eager'}\n",
        "compile.enable = true\ncompile.backend = 'eager'\n",
        "[compile]\nenable = true\nbackend = 'eager'\n[a]\nb = 1\n[compile.x]\n",
        "[compile.x]\n[a]\n[compile]\nenable = true\nbackend = 'eager'\n",
    ],
)
def test_merge_takes_every_way_to_write_a_table(into: str) -> None:
    section = keys(uniform(full(), "layer"), into=into)["compile"]
    section.pop("x", None)
    assert section == {"enable": True, "backend": "eager", "components": ["model", "loss"]}


def test_earlier_import_of_the_same_name_is_cleared_and_others_stay() -> None:
    assert keys(uniform(full()), into='[experimental]\ncustom_import = "s_ac"\n')["experimental"] == {
        "custom_import": ""
    }
    other = '[experimental]\ncustom_import = "mine"\n'
    assert keys(uniform(full()), into=other)["experimental"] == {"custom_import": "mine"}
    assert keys(MIXED, into=other, approximate=True)["experimental"] == {"custom_import": "mine"}
    assert keys(MIXED, into='[experimental]\ncustom_import = "s_ac"\n')["experimental"] == {"custom_import": "s_ac"}
    with pytest.raises(UsageError, match=r"run.toml: \[experimental\] custom_import is 'mine' already.*`import mine`"):
        toml_export(MIXED, into=other, into_name="run.toml")


@pytest.mark.parametrize(
    ("into", "message"),
    [
        ("a = = b", "run.toml is not TOML"),
        ("activation_checkpoint = 3", "run.toml: 'activation_checkpoint' is not a table"),
    ],
)
def test_config_that_keys_cannot_be_set_in(into: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        toml_export(uniform(full()), into=into, into_name="run.toml")


def test_unknown_version() -> None:
    with pytest.raises(
        UsageError, match=r"--version 0\.9: torchtitan-toml knows torchtitan 0\.1\.0, 0\.2\.0, 0\.2\.2\."
    ):
        toml_export(MIXED, "0.9")


def test_model_that_torchtitan_does_not_checkpoint() -> None:
    plan = plan_of(("*", full()))
    with pytest.raises(UsageError, match=r"the plan's model has double_blocks\.0-1"):
        export_plan(
            plan, structure_of("double_blocks.0", "double_blocks.1"), format="torchtitan-toml", version=None, name="s"
        )


def test_plan_for_another_model() -> None:
    with pytest.raises(PlanError, match="reaches outside the model"):
        toml_export(plan_of(("layers.0-9", full())))


def test_routers_that_are_recomputed_are_noted() -> None:
    mixture = LayerClass("Block", SIX_LAYERS.layer_fqns, (), ("attention", "moe", "moe.experts"), ("attention",))
    structure = ModelStructure(SIX_LAYERS.layer_fqns, (mixture,))

    def notes(plan: Plan, of: ModelStructure) -> str:
        return export_plan(plan, of, format="torchtitan-toml", version="0.2.2", name="s").next_steps

    assert "note: torchtitan 0.2.2 has no save_routing" in notes(uniform(full()), structure)
    assert "save_routing" not in notes(uniform(full(save_routing=False)), structure)
    assert "save_routing" not in notes(uniform(full()), SIX_LAYERS)
