"""What `tta-apm data` does before any run: check, get and make data sets."""
