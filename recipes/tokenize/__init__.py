"""Recipe: a corpus to token shards on any number of GPUs; the same shards as `jepa-tok tokenize`."""
