"""`python -m lorica` is the `lorica` command."""

from lorica.cli import main

main()
