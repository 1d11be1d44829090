"""Which names a study may have."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from actune.boundary import shorten
from actune.errors import UsageError

MAX_STUDY_NAME_LENGTH = 100
_STUDIES_LISTED = 20

# ASCII only, and no separator or leading dot: the name is part of a file's name, which must stay in its folder.
_STUDY_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_STUDY_NAME_LENGTH - 1}}}")


def validate_study_name(name: str) -> str:
    """The name, unchanged.

    Raises:
        UsageError: the name has another form.
    """
    if _STUDY_NAME.fullmatch(name) is None:
        raise UsageError(
            f"study name {shorten(name)} is not usable. Expected 1 to {MAX_STUDY_NAME_LENGTH} letters, digits, '.', "
            f"'_' or '-', the first a letter or a digit, such as 'llama3-8b_64GiB'."
        )
    return name


def no_such_study(name: str, names: Sequence[str], label: str) -> UsageError:
    """What to tell who asks for a study that is not there.

    Args:
        name: that was asked for.
        names: of the studies that there are, the latest first.
        label: of the database.
    """
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    more = f" and {len(names) - _STUDIES_LISTED} older ones" if len(names) > _STUDIES_LISTED else ""
    return UsageError(
        f"no study {shorten(name)} at {label}.{hint} There are: {', '.join(names[:_STUDIES_LISTED])}{more}."
    )
