"""Both trees behind one face, for commands and benchmarks."""
