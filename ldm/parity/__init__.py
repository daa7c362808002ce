"""Every stage beside another engine's on the same file: `ldm parity`. The other engine is imported here and nowhere else in ldm."""
