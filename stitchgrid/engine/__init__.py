"""A shard's arithmetic: shared forward passes, all matchers at once. `shard.run_shard` is the way in."""
