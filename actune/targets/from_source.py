"""Imports that run the source which a person can read, and not what a file in `__pycache__` says it was compiled to.

Python takes such a file for the source's if the time and size that it names are those of the source, or if it says that
nothing is to be checked (PEP 552). What is trusted is the source.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType


class SourceAlone(SourceFileLoader):
    """Loads a module from its source, whatever was compiled before."""

    def get_code(self, fullname: str) -> CodeType:
        """Compiled anew."""
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


class FromSource(MetaPathFinder):
    """Finds a module, and the packages around it, where they would be found anyway, to be loaded from their source."""

    def __init__(self, name: str) -> None:
        """Args: name: the module's, with dots."""
        self._name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the other finders find; None for modules that are none of its business."""
        if not f"{self._name}.".startswith(f"{fullname}."):
            return None
        for finder in sys.meta_path:
            found = None if finder is self else finder.find_spec(fullname, path, target)
            if found is not None:
                if type(found.loader) is SourceFileLoader:
                    found.loader = SourceAlone(found.loader.name, found.loader.path)
                return found
        return None
