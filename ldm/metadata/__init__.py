"""What a picture says about how it was made: one file a dialect, text in and text out, without torch."""

PARAMETERS = "parameters"  # the key of A1111's text
RECORD = "ldm"  # the key of our own record
LIMIT = 8 * 2**20  # characters of a text that are read; the longest legal job needs about 2.5 million
