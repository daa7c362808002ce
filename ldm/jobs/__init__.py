"""Many jobs in one run: prompt files, the manifest of what is done, and claims, by which several processes share a folder."""
