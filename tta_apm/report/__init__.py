"""Tables from records; imports no torch."""
