"""The `hmt` command: a file for each group of commands, with their work beside their arguments.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. Answers and tables go to stdout, everything else to stderr.
Commands that run no model import no torch.
"""

from .command import main

__all__ = ["main"]
