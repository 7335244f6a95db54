"""The variational posterior: a Gaussian factor for every site, and the encoder of cells."""

from pyrocell.guide.guide import Guide

__all__ = ["Guide"]
