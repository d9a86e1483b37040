"""What the Wan miniature is made of: its autoencoder, text encoder and transformer."""
