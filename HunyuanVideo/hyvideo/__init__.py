"""HunyuanVideo: text to video with the official checkpoints and command line."""
