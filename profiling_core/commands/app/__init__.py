"""A page in the browser: a prompt, a plan, and the clip; one process holds the model."""
