"""Formats: tables as text, a module for each with a function `text(tables)`. Import no torch.

`tta-apm export NAME` writes them. Another one, ours or yours, is a file and a line of a setup.cfg:

    [options.entry_points]
    tta_apm.formats =
        html = my_format:text
"""
