"""Launchers: start workers that share a sweep, on this machine or on others.

The state of a sweep is its folder: a worker needs no more than the folder's path. A launcher is a
class of one file, `Launcher` says which, and a line of a setup.cfg:

    [options.entry_points]
    tta_apm.launchers =
        mine = my_launcher:Mine
"""
