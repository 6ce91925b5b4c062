"""Evaluation: what memory gains, measured against equally trained and equally sighted references."""
