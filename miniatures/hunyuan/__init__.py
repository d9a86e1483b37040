"""What the HunyuanVideo miniature is made of: its autoencoder, text encoders and transformer."""
