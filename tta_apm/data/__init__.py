"""Data sets, corruptions and the streams made of them."""
