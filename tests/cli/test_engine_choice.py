"""Where a search runs may change while a study goes on; what is wrong with it is said before a database is made."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from actune.boundary import from_json, to_json
from actune.cli.search import _continued, _parsed
from actune.config import load_study_file
from actune.engine import LocalEngine, engine_factory
from actune.engine.on_ray import RayEngine
from actune.errors import UsageError
from actune.study_records import StudySettings
from tests.store.examples import SETTINGS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--address", "10.0.0.5:6379"), "give --engine ray too"),
        (("--engine", "ray", "--device", "cuda:1"), "Ray chooses each trial's cards"),
        (("--engine", "slurm"), "'slurm' is not one of 'local', 'ray'"),
    ],
)
def test_wrong_choice_leaves_no_database(actune, options, message):
    ended = actune("search", "--target", "dense-tiny", "--budget", "60%", *options)
    assert ended.code == 2
    assert message in " ".join(ended.err.split())
    assert not Path("studies").exists()


def test_the_engine_has_the_address():
    made = engine_factory("ray", "10.0.0.5:6379")
    assert (made.func, made.keywords) == (RayEngine, {"address": "10.0.0.5:6379"})
    made = engine_factory("local", None, cards=("cuda:1",))
    assert (made.func, made.keywords) == (LocalEngine, {"cards": ("cuda:1",)})
    with pytest.raises(UsageError, match="names cards of this machine"):
        engine_factory("ray", None, cards=("cuda:1",))
    with pytest.raises(UsageError, match="engine 'slurm' does not exist"):
        engine_factory("slurm", None)


def test_settings_from_before_engines_ran_on_one_machine():
    older = asdict(SETTINGS)
    del older["engine"], older["address"]
    assert from_json(StudySettings, json.dumps(older)) == SETTINGS
    assert from_json(StudySettings, to_json(SETTINGS)) == SETTINGS


def test_a_study_goes_on_elsewhere():
    cluster = _continued(SETTINGS, "a", {"engine": "ray", "address": "10.0.0.5:6379"})
    assert (cluster.engine, cluster.address) == ("ray", "10.0.0.5:6379")
    assert _continued(cluster, "a", {"address": "10.0.0.6:6379"}).address == "10.0.0.6:6379"
    assert _continued(cluster, "a", {"engine": "local"}) == SETTINGS


def test_a_study_file_may_name_the_engine(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("schema: 1\nengine: ray\naddress: 10.0.0.5:6379\n")
    named = _parsed(load_study_file(file).model_dump(exclude_none=True), source=str(file))
    assert named == {"engine": "ray", "address": "10.0.0.5:6379"}
    with pytest.raises(UsageError, match="engine: 'slurm' is not one of"):
        _parsed({"engine": "slurm"}, source=str(file))
