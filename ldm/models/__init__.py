"""The networks: UNet, VAE and the CLIP text towers, with the checkpoint's own parameter names."""
