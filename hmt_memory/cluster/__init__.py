"""Many workers on Ray: replicas of the server, readers of a corpus, shards of its indexes. Ray is named here only."""
