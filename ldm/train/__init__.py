"""Training of every part of a latent diffusion model, on the networks and the noise levels that generation uses.

`python -m ldm.train CONFIG --stage vae|towers|unet` trains one stage, in that order; `--export FILE` writes the official file layout.
"""
