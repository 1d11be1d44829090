"""The search: proposes plans, has them measured, and decides which is best."""

from actune.search.coordinator import run_search
from actune.search.copying import copy_whole_study
from actune.search.proposers import SAMPLERS, check_sampler
from actune.search.reporter import Progress, Reporter, SilentReporter

__all__ = ["SAMPLERS", "Progress", "Reporter", "SilentReporter", "check_sampler", "copy_whole_study", "run_search"]
