"""Checks that need a real NVIDIA card: ``python -m tests.gpu``.

They are plain functions and not tests, so that nothing has to be left out where there is no card.
"""
