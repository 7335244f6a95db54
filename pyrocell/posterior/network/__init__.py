"""Who regulates whom: a sparse network from the effects of perturbations, direct against indirect.

`edges` and `sampler`: the network given effects. `readings`: effects and losses from counts and
posterior. `table`: what users see, with what each edge rests on.
"""

from __future__ import annotations

from pyrocell.posterior.network.table import network_table, regulator_table

__all__ = ["network_table", "regulator_table"]
