"""Whether bad input ends in anything but a clear message: thousands of texts, files, options and altered databases.

Each input goes to a parser, or as a file or an option through the whole command line in this process. Counted are
`tracebacks` (an exception that is not actune's own, or an internal error), `hangs` (ten seconds), `damaged_files` (a
file that is neither what it was nor whole) and `control_characters` (that reach the terminal). A table goes to stderr;
the last line on stdout is one JSON document. What is found is printed with the seed that makes it again.

    python benchmarks/bad_input.py --fast             # 500 inputs, some seconds
    python benchmarks/bad_input.py --count 10000 --seed 1
    python benchmarks/bad_input.py --save             # what results/bad_input.json holds
    python benchmarks/bad_input.py --only database    # one kind
"""

import argparse
import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections import Counter
from pathlib import Path

import bad_input_study
import results
from mutations import (
    ODD_TEXTS,
    alter_database,
    columns_of,
    mutated_json,
    mutated_text,
    mutated_value,
)

from actune import device_spec, tomldoc
from actune.boundary import from_json, to_json
from actune.cli import run
from actune.config import parse_space, shipped_spaces
from actune.errors import ActuneError
from actune.plan import dump_plan, parse_plan, plan_hash
from actune.plan.patterns import LayerPattern, compress_fqns
from actune.records import (
    CompareGradients,
    Failed,
    GradientReport,
    Loaded,
    LoadTarget,
    Measured,
    Measurement,
    MeasurePlan,
    Outcome,
    ReplyLine,
    Request,
)
from actune.target_spec import parse_target_spec
from actune.units import Budget, parse_duration_s

HANG_S = 10
NO_STORE = "nothing://nowhere"  # where a command ends that would else start a search
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
FQNS = tuple(f"decoder.blocks.{number}.inner" for number in range(200))

PLANS = [dump_plan(plan) for plan in bad_input_study.PLANS.values()]
SPACES = [path.read_text(encoding="utf-8") for path in shipped_spaces().values()]
STUDY = {
    "target": "dense-tiny",
    "budget": "60%",
    "trials": 3,
    "tolerance": "1%",
    "timeout": "1h",
    "seed": 1,
    "space": "moe",
}
INTO = '# mine\n[training]\nsteps = 3 # few\n[compile]\nenable = true\ncomponents = ["loss"]\n[job.a]\nb = {c = 1}\n'
REQUESTS = [LoadTarget("dense-tiny", "cpu", 0), MeasurePlan(PLANS[0], PLANS[1], 2**30, 5), CompareGradients(*PLANS[:2])]
REPLIES = [
    Loaded(bad_input_study.TARGET, bad_input_study.ENVIRONMENT),
    Measured(Measurement(Outcome.OK, 2**30)),
    GradientReport(True, False, 1e-5, 1e-7, "loss"),
    Failed("plan", "no"),
]
BUDGETS = ("70GB", "64GiB", "60%", "3MiB,60%", "0.5 TB")
DURATIONS = ("90s", "1h30m", "15m", "2h", "12")
TARGETS = (
    "dense-tiny?layers=2",
    "hf:config.json",
    "torchtitan:llama3/debugmodel",
    "mine.py:Net?a=1",
    "package.mod:Net",
)
NAMES = ("sound", "llama3-8b_64GiB", "a.b")
STORAGES = ("sqlite:///a.db", "sqlite:////tmp/nowhere/a.db", "sqlite:///:memory:", "a.db", "oracle://u:p@h/x")


class Hang(BaseException):
    """Not an Exception, so that nothing on the way takes it for its own."""


class DamageError(Exception):
    """A file is neither what it was nor whole."""


class Inputs:
    """Makes inputs in a folder of its own, and gives each to what reads it."""

    def __init__(self, folder):
        self.folder = folder
        self.sound = folder / "sound.db"
        bad_input_study.make_study(self.sound)
        self.columns = columns_of(self.sound)
        names = [name for name in sorted(dir(self)) if name.startswith("give_")]
        self.kinds = {name.removeprefix("give_"): getattr(self, name) for name in names}

    def _text(self, rng, valid):
        return rng.choice(ODD_TEXTS) if rng.random() < 0.1 else mutated_text(rng, rng.choice(valid))

    def _file(self, rng, name, text):
        path = self.folder / name
        path.write_bytes(text.encode("utf-8", errors="surrogatepass" if rng.random() < 0.5 else "replace"))
        return path

    def _toml(self, rng, valid):
        if rng.random() < 0.5:
            return self._text(rng, valid)
        value = mutated_value(rng, tomllib.loads(rng.choice(valid)))
        try:
            return tomldoc.write(value)
        except Exception:  # what TOML can't say is no input
            return mutated_text(rng, rng.choice(valid))

    def _yaml(self, rng, valid):
        """JSON is YAML."""
        if rng.random() < 0.5:
            return self._text(rng, valid)
        space = {
            "schema": 1,
            "menu": [{"policy": "selective", "each": {"save_every_nth_mm": [1, 2]}, "layers": ["a.0-3"]}],
        }
        return json.dumps(mutated_value(rng, space))

    def give_plan(self, rng):
        plan = parse_plan(self._toml(rng, PLANS))
        text = dump_plan(plan)
        if parse_plan(text) != plan or plan_hash(parse_plan(text)) != plan_hash(plan):
            raise DamageError(f"a plan's text is another plan: {text}")
        plan.canonical_for(FQNS)

    def give_space(self, rng):
        parse_space(self._yaml(rng, SPACES), name="s")

    def give_pattern(self, rng):
        text = self._text(rng, ("blocks.0-11", "decoder.*", "*.3", "decoder.blocks.0-3.*", "*" + "a*" * 30))
        LayerPattern(text).select(FQNS)

    def give_fqns(self, rng):
        compress_fqns(self._text(rng, FQNS) for _ in range(5))

    def give_device(self, rng):
        name = rng.choice(device_spec.device_names())
        text = (Path(device_spec.__file__).parent / "devices" / f"{name}.toml").read_text(encoding="utf-8")
        device_spec.parse_device_spec(name, self._toml(rng, (text,)))

    def give_units(self, rng):
        rng.choice((Budget.parse_all, parse_duration_s))(self._text(rng, BUDGETS + DURATIONS))

    def give_target(self, rng):
        parse_target_spec(self._text(rng, TARGETS))

    def give_request(self, rng):
        self._give_line(rng, Request, REQUESTS)

    def give_reply(self, rng):
        self._give_line(rng, ReplyLine, [ReplyLine(1, reply) for reply in REPLIES])

    def _give_line(self, rng, kind, valid):
        line = mutated_json(rng, to_json(rng.choice(valid)))
        content = line.encode(errors="surrogatepass")
        with contextlib.suppress(ValueError):
            to_json(from_json(kind, content if rng.random() < 0.8 else content[: rng.randrange(len(content) + 1)]))

    # Through the command line

    def give_plan_file(self, rng):
        path = self._file(rng, "plan.toml", self._toml(rng, PLANS))
        call("measure", "--target", "missing.py:Net", "--plan", path)

    def give_space_file(self, rng):
        path = self._file(rng, "space.yaml", self._yaml(rng, SPACES))
        call("search", "--target", "dense-tiny", "--budget", "60%", "--space", path, "--storage", NO_STORE)

    def give_study_file(self, rng):
        text = json.dumps(mutated_value(rng, {"schema": 1} | STUDY))
        if rng.random() < 0.4:
            text = mutated_text(rng, "schema: 1\n" + "".join(f"{key}: {value}\n" for key, value in STUDY.items()))
        call("search", self._file(rng, "study.yaml", text), "--storage", NO_STORE)

    def give_options(self, rng):
        options = {
            "--target": self._text(rng, TARGETS),
            "--budget": self._text(rng, BUDGETS),
            "--tolerance": self._text(rng, ("1%", "0.01")),
            "--timeout": self._text(rng, DURATIONS),
            "--trials": self._text(rng, ("3",)),
            "--study": self._text(rng, NAMES),
            "--space": self._text(rng, ("moe", "auto")),
            "--sampler": self._text(rng, ("tpe",)),
            "--device": self._text(rng, ("cpu", "cuda:1", "sim:h100")),
            "--world-size": self._text(rng, ("8",)),
        }
        good = {"--target": "dense-tiny", "--budget": "60%"}
        chosen = good | {option: options[option] for option in rng.sample(list(options), rng.randint(1, 2))}
        call("search", *(part for pair in chosen.items() for part in pair), "--storage", NO_STORE)

    def give_command(self, rng):
        """Any command that reads the database, with any of its options."""
        command = rng.choice(("show", "studies", "export", "frontier", "resume"))
        arguments = [command] + ([] if command == "studies" else [self._text(rng, NAMES)])
        options = ("--json", "--trial", "--budget", "--version", "--base", "--format", "--into", "--plot", "-o")
        for option in rng.sample(options, rng.randint(0, 3)):
            values = (
                "1",
                "3MiB",
                "0.2.2",
                "llama3:llama3_8b",
                "torchtitan",
                "torchtitan-toml",
                "plot.svg",
                "out/x.toml",
            )
            arguments += [option] if option == "--json" else [option, self._text(rng, values)]
        call(*arguments, "--storage", f"sqlite:///{self.sound}")

    def give_storage(self, rng):
        command = rng.choice((("studies",), ("show", "sound"), ("resume", "sound")))
        call(*command, "--storage", self._text(rng, STORAGES))

    def give_database_file(self, rng):
        content = bytearray(self.sound.read_bytes())
        for _ in range(rng.choice((1, 5, 200))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path = self.folder / "broken.db"
        path.write_bytes(content[: rng.choice((len(content), rng.randrange(len(content))))])
        for command in (("studies",), ("show", "sound"), ("export", "sound")):
            call(*command, "--storage", f"sqlite:///{path}")
        for left in self.folder.glob("broken.db*"):
            left.unlink()

    def give_database(self, rng):
        path = self.folder / "altered.db"
        shutil.copy(self.sound, path)
        for _ in range(rng.choice((1, 1, 2))):
            alter_database(rng, path, self.columns)
        commands = [("studies",), ("show", "sound"), ("show", "sound", "--json"), ("frontier", "sound")]
        commands += [("export", "sound", "--format", name) for name in ("actune", "torchtitan")]
        commands += [("resume", "sound"), ("export", "sound", "--trial", "2")]
        for command in rng.sample(commands, 4):
            call(*command, "--storage", f"sqlite:///{path}")
        for left in self.folder.glob("altered.db*"):
            left.unlink()

    def give_into(self, rng):
        """A config into which a plan is written: it stays as it was, or has the keys and is TOML."""
        path = self._file(rng, "train.toml", self._toml(rng, (INTO,)))
        before = path.read_bytes()
        trial = str(rng.randrange(2))
        more = ("--format", "torchtitan-toml", "--trial", trial, "--into", path)
        code = call("export", "sound", *more, "--storage", f"sqlite:///{self.sound}")
        after = path.read_bytes()
        if code == 0:
            read = tomllib.loads(after.decode())
            if read["activation_checkpoint"]["mode"] not in ("full", "none"):
                raise DamageError(f"not what was exported: {after!r:.300}")
        elif after != before:
            raise DamageError(f"changed by a command that failed: {after!r:.300}")
        if any(name.endswith((".tmp", ".before")) for name in os.listdir(self.folder)):
            raise DamageError("a temporary file is left")

    def give_hf_config(self, rng):
        """The file is read in the worker, from whose side this is; transformers itself is not asked."""
        from actune.targets.hf_config import _read

        config = {"model_type": "llama", "num_hidden_layers": 2, "text_config": {"attn_implementation": "sdpa"}}
        path = self._file(rng, "config.json", mutated_json(rng, json.dumps(config)))
        _read(parse_target_spec(f"hf:{path}"))


def call(*arguments):
    """A command of the command line in this process: its exit code."""
    # No process can be given a NUL, and bytes that are no UTF-8 come as some halves of surrogate pairs.
    texts = [str(argument).replace("\0", "").replace("\ud800", "\udc80") for argument in arguments]
    arguments = [text.encode(errors="surrogateescape").decode(errors="surrogateescape") for text in texts]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(arguments)
    if "internal error" in err.getvalue():
        raise AssertionError(f"{arguments}: {err.getvalue()}"[:2000])
    ours = "".join(line for line in err.getvalue().splitlines(True) if line.startswith("actune:")) + out.getvalue()
    if arguments[0] != "export" and (found := CONTROL.search(ours)):
        raise ControlCharacterError(f"{arguments}: {found[0]!r} in {ours!r:.500}")
    return code


class ControlCharacterError(Exception):
    """One reached the terminal."""


def outcome_of(give, rng):
    """What came of one input: `ok`, or what it is counted as, with a traceback."""
    try:
        signal.setitimer(signal.ITIMER_REAL, HANG_S)
        try:
            give(rng)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except ActuneError:
        return "ok", ""
    except Hang:
        return "hangs", traceback.format_exc()
    except DamageError:
        return "damaged_files", traceback.format_exc()
    except ControlCharacterError as found:
        return "control_characters", str(found)
    except Exception:
        return "tracebacks", traceback.format_exc()
    return "ok", ""


def alarm(_signal, _frame):
    raise Hang


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fast", action="store_true", help="500 inputs")
    parser.add_argument("--only", help="inputs of this kind alone")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    count = 500 if options.fast else options.count
    signal.signal(signal.SIGALRM, alarm)
    os.environ |= {"COLUMNS": "160"}
    counts, of_kind, slowest = Counter(), Counter(), ("", 0.0)
    with tempfile.TemporaryDirectory(prefix="actune-bad-input-") as folder, contextlib.chdir(folder):
        os.environ |= {"XDG_STATE_HOME": f"{folder}/state", "TMPDIR": folder}
        inputs = Inputs(Path(folder))
        kinds = [options.only] if options.only else list(inputs.kinds)
        started_s = time.monotonic()
        for number in range(count):
            kind = kinds[number % len(kinds)]
            begin_s = time.monotonic()
            outcome, found = outcome_of(inputs.kinds[kind], random.Random(f"{options.seed} {number}"))
            slowest = max(slowest, (kind, time.monotonic() - begin_s), key=lambda one: one[1])
            counts[outcome] += 1
            of_kind[kind] += 1
            if outcome != "ok":
                print(f"--seed {options.seed}, input {number}, {kind}: {outcome}\n{found}", file=sys.stderr)
        took_s = time.monotonic() - started_s
    for kind, inputs_of_kind in of_kind.items():
        print(f"{kind:16} {inputs_of_kind}", file=sys.stderr)
    bad = {name: counts[name] for name in ("tracebacks", "hangs", "damaged_files", "control_characters")}
    document = {"benchmark": "bad_input", "inputs": count, "seed": options.seed} | bad
    document |= {"slowest_s": round(slowest[1], 3), "slowest": slowest[0], "took_s": round(took_s, 1)}
    if options.save:
        results.save("bad_input", document)
    print(json.dumps(document))
    sys.exit(1 if any(bad.values()) else 0)


if __name__ == "__main__":
    main()
