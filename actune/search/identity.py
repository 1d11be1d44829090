"""Whether a study that exists is the one that is asked for, so that old and new trials can be compared."""

from __future__ import annotations

from dataclasses import replace

from actune.errors import UsageError
from actune.records import Loaded
from actune.store import environment_fingerprint
from actune.study_records import StudyRecord, StudySettings


def check_same_study(record: StudyRecord, settings: StudySettings, loaded: Loaded) -> None:
    """Compares what a study was started with to what it is to go on with.

    Raises:
        UsageError: the target, environment, budget or space is another one.
    """
    if (record.settings.budget, record.settings.space_yaml) != (settings.budget, settings.space_yaml):
        raise UsageError(
            f"study '{record.name}' was started with budget {record.settings.budget} and space "
            f"'{record.settings.space}' as it was then, not with budget {settings.budget} and space "
            f"'{settings.space}' as it is now. Go on with what it has, or start a new study with --study."
        )
    if record.target.fingerprint != loaded.target.fingerprint:
        raise UsageError(
            f"study '{record.name}': the target '{record.target.spec}' is not what it was when the study began "
            f"({record.created_at}), so old and new trials can't be compared. Start a new study with --study."
        )
    if environment_fingerprint(record.environment) != environment_fingerprint(loaded.environment):
        before, now = record.environment, loaded.environment
        if replace(before, allocator=now.allocator) == now:
            raise UsageError(
                f"study '{record.name}' was measured with the allocator settings '{before.allocator or ''}', and now "
                f"they are '{now.allocator or ''}'. Peaks depend on them. Set PYTORCH_ALLOC_CONF as it was, or start a "
                "new study with --study."
            )
        raise UsageError(
            f"study '{record.name}' was measured on {before.device_name} with torch {before.torch_version} and "
            f"{before.threads} threads; this is {now.device_name}, torch {now.torch_version}, {now.threads} "
            "threads. Their times can't be compared. Start a new study with --study."
        )
