"""Model: codec, U-Net and Mixture-of-Transformers; it knows no ranks."""
