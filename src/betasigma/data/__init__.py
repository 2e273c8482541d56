"""Data sets as tensors in the model's value range, in an order that can be resumed at any step.

``catalog`` and ``listing`` need the standard library only: the command line asks them before
anything heavy is imported. That is why this file imports nothing.
"""
