"""One clip on several processes: sequence parallelism, guidance branches apart, sharded weights."""
