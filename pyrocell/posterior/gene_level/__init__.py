"""Posterior of the gene-level sites, drawn from the counts of conditions after training."""
