"""The Pyro model: priors of all sites, and the likelihood of counts given them (eqs. 1-15)."""

from pyrocell.generative.model import GenerativeModel

__all__ = ["GenerativeModel"]
