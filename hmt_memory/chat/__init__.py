"""Messages to token ids and back: one renderer for every path, tool calls, and answers with a form."""
