"""`python -m purerl` is the `purerl` command."""

from purerl.run.cli import main

main()
