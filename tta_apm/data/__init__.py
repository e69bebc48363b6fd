"""Data sets, corruptions, and the streams of batches from them."""
