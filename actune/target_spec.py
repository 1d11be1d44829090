"""What `--target` may say, taken apart. The parent process reads it, so nothing here imports torch or user code."""

from __future__ import annotations

import difflib
import keyword
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from actune.errors import UsageError

TargetFamily = Literal["builtin", "hf", "torchtitan", "file", "module"]

BUILTIN_TARGETS: Mapping[str, str] = MappingProxyType(
    {
        "dense-tiny": "Llama-like decoder, 4 layers: grouped-query attention and SwiGLU; a step takes a fraction of a "
        "second on a CPU",
        "dense-tiny-12": "the same with 12 layers",
        "moe-tiny": "DeepSeek-like decoder, 4 layers: one dense, then mixtures of 8 experts with a shared one",
        "moe-tiny-12": "the same with 12 layers",
    }
)

SIZE_OPTIONS: Mapping[str, str] = MappingProxyType(
    {"layers": "number of layers", "batch": "sequences in a batch", "seq": "tokens in a sequence"}
)

DTYPE_OPTION = "dtype"
DTYPES = ("float32", "bfloat16")
"""What `dtype` of torchtitan's training config may be."""

_FORMS = (
    f"a built-in name ({', '.join(BUILTIN_TARGETS)}), hf:path/to/config.json, torchtitan:family/flavor, "
    "path/to/file.py:attr, or package.module:attr, each with options as ?key=value&key=value if need be"
)
_FAMILY_AND_FLAVOR = re.compile(r"[A-Za-z_]\w*/[^/\s]+")
_DOTTED_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """A target as named on the command line.

    Attributes:
        text: as given.
        family: builtin, hf (a Hugging Face config), torchtitan (a model of its registry), file (a user's .py) or module
            (a user's importable module).
        location: the built-in's name, the path, torchtitan's family/flavor, or the module's dotted name.
        attribute: the class or callable in a user's file or module; empty for the other families.
        options: in the order given, keys unique. For a user's own keyword arguments; for the others the keys of
            SIZE_OPTIONS, with values that are positive integers, and for torchtitan `dtype`, one of DTYPES.

    Raises:
        UsageError: at construction, if what is named does not exist or an option is not understood.
    """

    text: str
    family: TargetFamily
    location: str
    attribute: str
    options: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.family not in get_args(TargetFamily):
            raise UsageError(f"target '{self.text}': '{self.family}' is no family of targets. Expected {_FORMS}.")
        match self.family:
            case "builtin":
                self._check_name()
            case "hf":
                self._check_file("a Hugging Face config.json")
            case "torchtitan":
                self._check_family_and_flavor()
            case "file":
                self._check_file("a Python file")
            case "module":
                self._check_dotted_name()
        self._check_options()

    def size(self, option: str) -> int | None:
        """The value of `layers`, `batch` or `seq`, None if not given. Not for a user's own."""
        return next((int(value) for key, value in self.options if key == option), None)

    @property
    def dtype(self) -> str:
        """Of a model of torchtitan: the value of `dtype`, by default the first of DTYPES, as in torchtitan."""
        return next((value for key, value in self.options if key == DTYPE_OPTION), DTYPES[0])

    @property
    def is_users_own(self) -> bool:
        """Whether the target's code is the user's."""
        return self.family in ("file", "module")

    def _check_name(self) -> None:
        if self.location not in BUILTIN_TARGETS:
            near = difflib.get_close_matches(self.location, BUILTIN_TARGETS, n=3, cutoff=0.5)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise UsageError(f"target '{self.text}': there is no built-in '{self.location}'.{hint} Expected {_FORMS}.")

    def _check_family_and_flavor(self) -> None:
        if _FAMILY_AND_FLAVOR.fullmatch(self.location) is None:
            raise UsageError(
                f"target '{self.text}': '{self.location}' is no model of torchtitan. Expected family/flavor as in its "
                "registry, such as torchtitan:llama3/debugmodel."
            )

    def _check_file(self, what: str) -> None:
        if not os.path.isfile(self.location):  # unlike Path's, it takes names that can't be a file's
            wrong = "does not exist"
            if os.path.exists(self.location):
                wrong = "is a folder" if os.path.isdir(self.location) else "is no regular file"
            raise UsageError(
                f"target '{self.text}': '{self.location}' {wrong}. Expected the path of {what}, absolute or from the "
                "current folder."
            )
        self._check_attribute()

    def _check_dotted_name(self) -> None:
        if _DOTTED_NAME.fullmatch(self.location) is None:
            raise UsageError(f"target '{self.text}': '{self.location}' is no module's dotted name. Expected {_FORMS}.")
        self._check_attribute()

    def _check_attribute(self) -> None:
        if self.is_users_own and not self.attribute.isidentifier():
            raise UsageError(
                f"target '{self.text}': '{self.attribute}' is no name in a Python module. Expected "
                f"{self.location}:NAME, where NAME is a Target (a class or a callable that returns one)."
            )

    def _check_options(self) -> None:
        seen: set[str] = set()
        for key, value in self.options:
            if key in seen:
                raise UsageError(f"target '{self.text}': the option '{key}' is given twice. Give it once.")
            seen.add(key)
            if self.is_users_own:
                if not key.isidentifier() or keyword.iskeyword(key):
                    raise UsageError(
                        f"target '{self.text}': '{key}' can't be a keyword argument. Expected ?name=value&name=value."
                    )
                continue
            if key == DTYPE_OPTION and self.family == "torchtitan":
                if value not in DTYPES:
                    raise UsageError(
                        f"target '{self.text}': dtype={value} is none that torchtitan trains in. Expected one of: "
                        f"{', '.join(DTYPES)}."
                    )
                continue
            if key not in SIZE_OPTIONS:
                meanings = dict(SIZE_OPTIONS)
                if self.family == "torchtitan":
                    meanings[DTYPE_OPTION] = f"of the whole model: {' or '.join(DTYPES)}"
                near = difflib.get_close_matches(key, meanings, n=1)
                hint = f" Did you mean '{near[0]}'?" if near else ""
                known = ", ".join(f"{name} ({meaning})" for name, meaning in meanings.items())
                raise UsageError(f"target '{self.text}': unknown option '{key}'.{hint} Known options: {known}.")
            if re.fullmatch(r"[0-9]{1,9}", value) is None or int(value) == 0:
                raise UsageError(
                    f"target '{self.text}': {key}={value} is not a {SIZE_OPTIONS[key]}. Expected a whole number from "
                    "1 up, such as 4."
                )


def parse_target_spec(text: str) -> TargetSpec:
    """Takes `--target`'s text apart, and checks what can be checked without running anything.

    The forms: `dense-tiny`, `hf:path/to/config.json`, `torchtitan:family/flavor`, `path/to/file.py:attr`,
    `package.module:attr`; each may end in `?key=value&key=value`. Paths are relative to the current folder.

    Raises:
        UsageError: the text has another form; it names a built-in, a file or a family that does not exist; or an
            option is unknown, malformed or given twice.
    """
    named, _, query = text.strip().partition("?")
    options = tuple(_option(text, item) for item in query.split("&")) if query else ()
    if not named:
        raise UsageError(f"target '{text}': no target is named. Expected {_FORMS}.")
    # From the right, since a path may itself hold colons, as C:\models\mine.py does.
    location, colon, attribute = named.rpartition(":")
    if named.startswith("hf:"):
        return TargetSpec(text, "hf", named.removeprefix("hf:"), "", options)
    if named.startswith("torchtitan:"):
        return TargetSpec(text, "torchtitan", named.removeprefix("torchtitan:"), "", options)
    if location.endswith(".py"):
        return TargetSpec(text, "file", location, attribute, options)
    if colon and _DOTTED_NAME.fullmatch(location) and attribute.isidentifier():
        return TargetSpec(text, "module", location, attribute, options)
    if colon:
        raise UsageError(f"target '{text}': '{location}' is no family of targets. Expected {_FORMS}.")
    if named.endswith(".py"):
        raise UsageError(
            f"target '{text}': a file alone does not say what in it is the target. Expected {named}:NAME, where NAME "
            "is a Target (a class or a callable that returns one)."
        )
    if named.endswith(".json"):
        raise UsageError(f"target '{text}': for a Hugging Face config write hf:{named}")
    return TargetSpec(text, "builtin", named, "", options)


def _option(text: str, item: str) -> tuple[str, str]:
    key, equals, value = item.partition("=")
    if not key or not equals or not value:
        raise UsageError(f"target '{text}': the option '{item}' has another form than key=value, such as layers=4.")
    return key, value
