"""One file to ship: a start script and an archive behind it, which run the pilot on a bare worker node.

:mod:`~pilot.bundle.wheels` gets what the pilot needs for every Python version, :mod:`~pilot.bundle.build` writes the
file, ``start.sh`` is the head of the file and finds a Python on the node, :mod:`~pilot.bundle.boot` is what that
Python runs first.
"""
