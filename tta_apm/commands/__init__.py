"""The commands, one module each: make_parser() builds its parser, run(options) runs it and returns
the exit code. `tta_apm.cli` has their table and the exit codes, and prints errors.
"""
