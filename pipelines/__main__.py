"""`python -m pipelines` is `ctd`."""

from pipelines.cli import main

main()
