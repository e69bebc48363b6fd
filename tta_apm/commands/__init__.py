"""Commands of the command line, a module each: `main(words)` returns the exit code."""
