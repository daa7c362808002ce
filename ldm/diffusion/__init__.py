"""Schedules, noise, denoiser, guidance and samplers: everything between the conditioning and the clean latents."""
