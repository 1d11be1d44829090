"""A stored study asks before the code that it names is imported; what the user named needs no asking."""

import json
import os
import py_compile
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from actune.cli import trust
from actune.cli.target_code import target_code
from actune.cli.trust import check_target
from actune.errors import UsageError
from actune.store import Store
from actune.target_spec import parse_target_spec
from tests.cli.conftest import SOUND
from tests.store.examples import ENVIRONMENT, SETTINGS, TARGET

ROOT = Path(__file__).parent.parent.parent
EVIL = "from pathlib import Path\nPath({mark!r}).touch()\n\ndef Net():\n    raise SystemExit\n"


@pytest.fixture(autouse=True)
def state(tmp_path_factory, monkeypatch):
    """A user who has named nothing yet."""
    folder = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder / "actune" / "trusted.json"


def ask(text, *, named=False, trusted=False):
    check_target(text, study="s", named_now=named, trust=trusted)


def target_file(folder, name="mine.py", text="def Net(): pass\n"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def store_study(folder, target, name="theirs"):
    (folder / "studies").mkdir(exist_ok=True)
    with Store.open(f"sqlite:///{folder}/studies/actune.db", create=True) as store:
        store.create_study(name, replace(SETTINGS, target=target), TARGET, ENVIRONMENT)


@pytest.mark.parametrize("command", [["resume", "theirs"], ["search", "--study", "theirs", "--trials", "3"]])
@pytest.mark.parametrize("target", ["theirs.py:Net", "their_package.inner:Net", "os:system?command=touch+ran"])
def test_what_only_a_database_names_is_not_imported(actune, tmp_path, command, target):
    mark = tmp_path / "ran"
    target_file(tmp_path, "theirs.py", EVIL.format(mark=str(mark)))
    target_file(tmp_path, "their_package/__init__.py", EVIL.format(mark=str(mark)))
    target_file(tmp_path, "their_package/inner.py", EVIL.format(mark=str(mark)))
    store_study(tmp_path, target)
    result = actune(*command)
    assert result.code == 2
    assert "study 'theirs' would import its target" in result.err
    assert "--trust-target" in result.err
    assert not mark.exists()


def test_resume_after_a_search_of_ones_own_does_not_ask(study, tmp_path, state):
    assert study("resume", "sound").code == 2  # the search was another user's, whose state folder is another one
    assert study("search", "--target", SOUND, "--study", "sound").code == 0
    assert study("resume", "sound").code == 0


def test_trust_target_is_remembered(study):
    assert study("resume", "sound", "--trust-target").code == 0
    assert study("resume", "sound").code == 0


def test_relative_and_absolute_paths_are_the_same_code(tmp_path, monkeypatch):
    path = target_file(tmp_path)
    (tmp_path / "link.py").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    ask("mine.py:Net", named=True)
    for name in ("mine.py", "./mine.py", str(path), "link.py"):
        ask(f"{name}:Net")


def test_changed_file_is_asked_for_again(tmp_path):
    path = target_file(tmp_path)
    ask(f"{path}:Net", named=True)
    path.write_text("def Net(): import os\n")
    with pytest.raises(UsageError, match=rf"from {path}: it has changed since you named it"):
        ask(f"{path}:Net")
    ask(f"{path}:Net", trusted=True)
    ask(f"{path}:Net")


@pytest.mark.parametrize("other", ["system", "Net?command=rm", "Net?layers=2&command=x"])
def test_another_call_in_a_trusted_file_is_asked_for(tmp_path, other):
    path = target_file(tmp_path)
    ask(f"{path}:Net?layers=2", named=True)
    with pytest.raises(UsageError, match=r"asks for .* in it, and what you have named is Net\?layers=2"):
        ask(f"{path}:{other}")


def test_same_file_in_another_place_is_asked_for(tmp_path):
    ask(f"{target_file(tmp_path / 'a')}:Net", named=True)
    with pytest.raises(UsageError, match="you have not named it on a command line before"):
        ask(f"{target_file(tmp_path / 'b')}:Net")


def test_module_is_the_one_that_a_worker_would_import(tmp_path, monkeypatch):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    target_file(elsewhere, "pack/__init__.py", "")
    target_file(elsewhere, "pack/inner.py")
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", str(elsewhere))
    ask("pack.inner:Net", named=True)
    ask("pack.inner:Net")
    target_file(here, "pack/inner.py")  # a namespace package, before the other on the path, but after any real package
    ask("pack.inner:Net")
    target_file(here, "pack/__init__.py", "")  # what the current folder has comes first
    with pytest.raises(UsageError, match=str(here / "pack" / "__init__.py")):
        ask("pack.inner:Net")


@pytest.mark.parametrize("changed", ["pack/__init__.py", "pack/inner.py"])
def test_changed_module_or_package_is_asked_for_again(tmp_path, monkeypatch, changed):
    target_file(tmp_path, "pack/__init__.py", "")
    target_file(tmp_path, "pack/inner.py")
    monkeypatch.chdir(tmp_path)
    ask("pack.inner:Net", named=True)
    ask("pack.inner:Net")
    (tmp_path / changed).write_text("import os\n")
    with pytest.raises(UsageError, match="it has changed since you named it"):
        ask("pack.inner:Net")


@pytest.mark.parametrize("name", ["os:system", "sys:exit", "json.decoder:JSONDecoder"])
def test_the_standard_library_is_found_without_importing(name):
    ask(name, named=True)
    ask(name)
    assert len(target_code(parse_target_spec(name)).sha256) == 64


def test_module_that_is_not_there(state):
    with pytest.raises(UsageError, match="there is no module 'no_such_module'"):
        ask("no_such_module.inner:Net")
    ask("no_such_module.inner:Net", named=True)  # the worker says so, in its own words
    assert not state.exists()


@pytest.mark.parametrize("target", ["dense-tiny", "torchtitan:llama3/debugmodel"])
def test_what_is_no_code_of_the_users_is_not_kept(target, state):
    ask(target)
    ask(target, named=True)
    assert not state.exists()


def test_file_is_the_users_alone_and_bounded(tmp_path, state, monkeypatch):
    monkeypatch.setattr(trust, "MAX_ENTRIES", 3)
    paths = [target_file(tmp_path, f"t{number}.py") for number in range(5)]
    for path in paths:
        ask(f"{path}:Net", named=True)
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    kept = [entry["place"] for entry in json.loads(state.read_text())["trusted"]]
    assert kept == [str(path) for path in paths[2:]]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"trusted": 3}', '{"trusted": [3]}', '{"trusted": [{}]}', "[" * 100_000, "\udc80", "#" * 2**22],
)
def test_damaged_file_trusts_nothing_and_is_left_as_it_is(tmp_path, state, text, capsys):
    path = target_file(tmp_path)
    ask(f"{path}:Net", named=True)
    content = text.encode(errors="surrogatepass")
    state.write_bytes(content)
    with pytest.raises(UsageError, match="whether you have named it before is not known"):
        ask(f"{path}:Net")
    ask(f"{path}:Net", trusted=True)
    assert "is not remembered" in capsys.readouterr().err
    assert state.read_bytes() == content


def test_file_that_others_may_write_trusts_nothing(tmp_path, state):
    path = target_file(tmp_path)
    ask(f"{path}:Net", named=True)
    state.chmod(0o666)
    with pytest.raises(UsageError, match="may be written by others"):
        ask(f"{path}:Net")


def test_state_folder_that_can_not_be_made_is_said(tmp_path, monkeypatch, capsys):
    (tmp_path / "state").write_text("a file")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = target_file(tmp_path)
    ask(f"{path}:Net", named=True)
    assert "is not remembered" in capsys.readouterr().err
    with pytest.raises(UsageError, match="--trust-target"):
        ask(f"{path}:Net")


def test_relative_state_folder_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    ask(f"{target_file(tmp_path)}:Net", named=True)
    assert not (tmp_path / "state").exists()
    assert (tmp_path / "home/.local/state/actune/trusted.json").is_file()


def test_pipe_as_a_target_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.py")
    with pytest.raises(UsageError, match="is no regular file"):
        ask(f"{tmp_path / 'pipe.py'}:Net")


def test_altered_target_of_ones_own_study_is_asked_for(study, tmp_path):
    assert study("search", "--target", SOUND, "--study", "sound").code == 0
    theirs = target_file(tmp_path, "theirs.py", EVIL.format(mark=str(tmp_path / "ran")))
    with closing(sqlite3.connect(tmp_path / "studies/actune.db")) as connection, connection:
        (settings,) = connection.execute("SELECT settings FROM actune_studies").fetchone()
        changed = json.loads(settings) | {"target": f"{theirs}:Net"}
        connection.execute("UPDATE actune_studies SET settings = ?", (json.dumps(changed),))
    result = study("resume", "sound")
    assert (result.code, str(theirs) in result.err) == (2, True)
    assert not Path(tmp_path / "ran").exists()


def test_a_target_that_becomes_another_while_it_is_waited_for_is_asked_for(study, tmp_path, monkeypatch):
    assert study("search", "--target", SOUND, "--study", "sound").code == 0
    theirs = target_file(tmp_path, "theirs.py", EVIL.format(mark=str(tmp_path / "ran")))

    def waited(store, name, settings, **options):
        with closing(sqlite3.connect(tmp_path / "studies/actune.db")) as connection, connection:
            changed = "json_set(settings, '$.target', ?)"
            connection.execute(f"UPDATE actune_studies SET settings = {changed}", (f"{theirs}:Net",))
        return settings()

    monkeypatch.setattr("actune.search.run_search", waited)
    result = study("resume", "sound", "--wait")
    assert (result.code, str(theirs) in result.err) == (2, True)


def test_a_cluster_that_only_a_database_names_is_not_connected_to(actune, tmp_path):
    (tmp_path / "studies").mkdir()
    with Store.open(f"sqlite:///{tmp_path}/studies/actune.db", create=True) as store:
        settings = replace(SETTINGS, target="dense-tiny", device="cpu", engine="ray", address="127.0.0.1:1")
        store.create_study("theirs", settings, TARGET, ENVIRONMENT)
    result = actune("resume", "theirs")
    assert result.code == 2
    assert "study 'theirs' would run on the Ray cluster at 127.0.0.1:1" in result.err
    named = actune("search", "--study", "theirs", "--address", "127.0.0.1:1")
    assert "nothing answers at the Ray address" in named.err
    assert "nothing answers at the Ray address" in actune("resume", "theirs").err


@pytest.mark.parametrize("target", ["{folder}/mine.py:Net", "mine:Net", "around.mine:Net"])
def test_bytecode_beside_a_trusted_file_is_not_what_runs(tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    mark = tmp_path / "ran"
    source = tmp_path / ("around/mine.py" if "around" in target else "mine.py")
    source.parent.mkdir(exist_ok=True)
    for path in {source, *([source.with_name("__init__.py")] if "around" in target else [])}:
        path.write_text(EVIL.format(mark=str(mark)))
        py_compile.compile(str(path), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
        path.write_text("class Net: pass\n")
    code = "import sys; from actune.targets.resolve import load_target; load_target(sys.argv[1])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    ran = subprocess.run(
        [sys.executable, "-c", code, target.format(folder=tmp_path)], env=environment, capture_output=True, text=True
    )
    assert "has no method model()" in ran.stderr
    assert not mark.exists()
