"""Formats: one module each, with a function `text(tables)`. They import no torch.

`tta-apm export NAME` calls it. A new format is one file and one line of a setup.cfg:

    [options.entry_points]
    tta_apm.formats =
        html = my_format:text
"""
