"""`profiling-dit check`: what a checkpoint, a machine and this version do together."""
