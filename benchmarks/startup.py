"""How long the command line makes a person wait for its help: against a bare interpreter, in interleaved runs.

Prints one JSON line. `help_over_python` is the median over the rounds of the ratio of both wall times.
"""

import json
import statistics
import subprocess
import sys
import time

ROUNDS = 15
HELP = [sys.executable, "-m", "actune", "--help"]
BARE = [sys.executable, "-c", "pass"]


def seconds_of(command):
    start_s = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start_s


def main():
    for command in (HELP, BARE):
        seconds_of(command)  # the first run reads files that later ones find in the cache
    rounds = [(seconds_of(HELP), seconds_of(BARE)) for _ in range(ROUNDS)]
    print(
        json.dumps(
            {
                "benchmark": "startup",
                "rounds": ROUNDS,
                "help_s": statistics.median(help_s for help_s, _ in rounds),
                "help_over_python": statistics.median(help_s / bare_s for help_s, bare_s in rounds),
            }
        )
    )


if __name__ == "__main__":
    main()
