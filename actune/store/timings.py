"""What the steps of many trials took, without a record for each step."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter

import sqlalchemy as sa

from actune.statistics import Timing, timing_of
from actune.store.rows import read_samples
from actune.store.schema import trials


def read_timings(connection: sa.Connection, study_id: int, *, by_process: bool) -> dict[int, Timing]:
    """Of each timed trial, by its number: one query for the samples of all, however many they are.

    Args:
        by_process: whether ratios are taken of the process's own time (`actune.statistics.counts_process_time`).
    """
    of_study = trials.c.study_id == study_id
    numbers = sa.select(trials.c.measurement_id, trials.c.number).where(of_study)
    found = read_samples(connection, sa.select(trials.c.measurement_id).where(of_study))
    of_measurement = {
        measurement_id: timing_of([tuple(pair[1:]) for pair in pairs], by_process=by_process)
        for measurement_id, pairs in groupby(found, key=itemgetter(0))
    }
    return {
        number: of_measurement[measurement_id]
        for measurement_id, number in connection.execute(numbers).all()
        if measurement_id in of_measurement
    }
