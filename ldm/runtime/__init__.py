"""What a run needs around the algorithm: the count of memory before it, and second tries where memory or range gives out."""
