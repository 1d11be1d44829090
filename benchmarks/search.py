"""The search against the optimum where that is known, and against its peers where it is not.

    python benchmarks/search.py simulated …   trials until near the enumerated optimum (`search_simulated.py --help`)
    python benchmarks/search.py peers …       the plan found against every peer, on real models (`peers.py --help`)
    python benchmarks/search.py --fast        a little of both

One line of JSON on stdout for each part, tables on stderr.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PARTS = {"simulated": "search_simulated.py", "peers": "peers.py"}


def main() -> None:
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in PARTS:
        parts = [PARTS[name]]
    elif name == "--fast" and not arguments:
        parts, arguments = list(PARTS.values()), ["--fast"]
    else:
        sys.exit(__doc__)
    for part in parts:
        subprocess.run([sys.executable, str(HERE / part), *arguments], check=True)


if __name__ == "__main__":
    main()
