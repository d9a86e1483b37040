"""Plan and run feature caching for video diffusion transformers."""
