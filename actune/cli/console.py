"""rich's console for texts that may come from a stranger."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from actune.cli.terminal import printable


class TextConsole(Console):
    """Strings are text alone: no control characters, no markup, no emoji by their names."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich's, which every string that is printed or stands in a table goes through."""
        return super().render_str(printable(text), **options)
