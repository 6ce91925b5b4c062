"""The memory behind HTTP: OpenAI's protocol in front of an `Assistant`. Needs the extra `serve`."""
