"""Plans in loops that are not ours: diffusers pipelines and the official repositories."""
