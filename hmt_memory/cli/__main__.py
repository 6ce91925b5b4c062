"""`python -m hmt_memory.cli`: the `hmt` command, as launchers start modules."""

from .command import main

if __name__ == "__main__":
    main()
