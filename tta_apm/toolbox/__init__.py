"""Building blocks that several methods share, for the package's methods and for yours."""
