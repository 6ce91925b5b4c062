"""The choice of passages that a question brings back: by recall, by words, or by both."""
