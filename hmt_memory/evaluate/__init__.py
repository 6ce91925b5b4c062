"""Evaluation: what memory gains, measured against references that were trained alike and see as many tokens."""
