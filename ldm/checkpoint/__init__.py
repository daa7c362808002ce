"""Files of weights: safetensors read by its offsets and as data alone, families by names and shapes, strict loading, and one writer."""
