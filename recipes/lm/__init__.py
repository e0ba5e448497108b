"""Recipe: train a speech language model on token shards."""
