"""`python -m actune`, the same as `actune`."""

from actune.cli import main

main()
