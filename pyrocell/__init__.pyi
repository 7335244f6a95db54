from pyrocell import arrayed as arrayed
from pyrocell import datasets as datasets
from pyrocell import design as design
from pyrocell import metrics as metrics
from pyrocell import preprocess as preprocess
from pyrocell import pseudotime as pseudotime
from pyrocell import report as report
from pyrocell import simulate as simulate
from pyrocell import transfer as transfer
from pyrocell.assumptions.spec import ASSUMPTIONS as ASSUMPTIONS
from pyrocell.assumptions.spec import Assume as Assume
from pyrocell.data.backed import read_backed as read_backed
from pyrocell.diagnostics import calibration as calibration
from pyrocell.diagnostics.subtypes import subtypes as subtypes
from pyrocell.generative.population_objective import DistributionObjective as DistributionObjective
from pyrocell.knowledge import Knowledge as Knowledge
from pyrocell.model import PyroCell as PyroCell
from pyrocell.operators import Media as Media
from pyrocell.operators import Perturb as Perturb
from pyrocell.operators import Protocol as Protocol
from pyrocell.operators import Wait as Wait
from pyrocell.priors import Priors as Priors
from pyrocell.proof_of_principle.pseudobulk_ode import PseudobulkODE as PseudobulkODE
from pyrocell.screen import Screen as Screen
from pyrocell.training import TrainingConfig as TrainingConfig
from pyrocell.training.checkpoints import read_checkpoint as read_checkpoint

__version__: str
__all__: list[str]
