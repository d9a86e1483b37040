"""Wan2.1: text to video with the official checkpoints and command line."""
