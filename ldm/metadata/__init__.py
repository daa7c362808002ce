"""What a picture says about how it was made: one file a dialect, text in and text out, without torch."""
