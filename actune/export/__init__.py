"""Plans in other programs' formats. Values in, text out; nothing here imports torch."""

from actune.export.formats import FORMATS, export_plan
from actune.export.spec import Export
from actune.export.write import write_export

__all__ = ["FORMATS", "Export", "export_plan", "write_export"]
