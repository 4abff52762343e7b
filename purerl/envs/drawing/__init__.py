"""Episodes as moving pictures, by NumPy and Pillow alone: no screen, no graphics driver and no network.

`movie` makes a GIF of any pictures; `flat` draws shapes on a plane; `classic`, `grids` and `bodies` know what states of
the environments look like. Nothing here runs an environment.
"""
