"""Many clips: a file of jobs, one process or a Ray cluster, resumable."""
