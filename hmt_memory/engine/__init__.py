"""The algorithm, Eq. 1-5: token ids in, token ids out. A file for each idea; knows no messages, sessions or database."""
