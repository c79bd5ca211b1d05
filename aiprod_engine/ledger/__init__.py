"""The files that LTX-2 users own: where they come from, where they belong, which are missing."""
