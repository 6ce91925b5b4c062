"""The `hmt` command."""

from hmt_memory.cli import main

main()
