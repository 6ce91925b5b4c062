"""The inspector: pages that show what is remembered, and why an answer says what it says."""
