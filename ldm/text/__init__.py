"""From words and sizes to what the UNet is told: token ids, chunks, context and vector."""
