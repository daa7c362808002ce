"""One file an operation: its plain PyTorch reference, and what runs instead where that is faster."""
