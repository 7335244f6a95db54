"""Compiled kernels: likelihoods of counts, sparse products, Adam by row; some also in torch."""
