"""Launchers: start workers that share a sweep, on this machine or on others.

The state of a sweep is its folder, so a worker needs only the folder's path. A new launcher is one
file with a subclass of `Launcher`, and one line of a setup.cfg:

    [options.entry_points]
    tta_apm.launchers =
        mine = my_launcher:Mine
"""
