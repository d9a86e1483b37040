"""Plans in foreign loops: diffusers pipelines and the official repositories."""
