"""Tables and plots of a results folder. Imports no torch."""
