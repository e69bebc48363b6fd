"""The commands, a module each: make_parser() gives what it takes, run(options) the exit code.

`tta_apm.cli` holds their table, the exit codes and the place where errors are printed.
"""
