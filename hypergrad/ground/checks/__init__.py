"""Arguments checked by a table: one rule a row, one error that names the argument and says what would be right.

@checked(random_key(), integer("size", least=1))
def minibatch(key, data, size): ...

class CG(AbstractLinearSolver):
    max_steps: int = field(integer("max_steps", least=1), 20)
"""

from ensembles.ground.kinds import boolean as boolean
from ensembles.ground.kinds import choice as choice
from ensembles.ground.kinds import function as function
from ensembles.ground.kinds import instance as instance
from ensembles.ground.kinds import integer as integer
from ensembles.ground.kinds import random_key as random_key
from ensembles.ground.kinds import real as real
from ensembles.ground.kinds import several as several
from ensembles.ground.rule import Rule as Rule
from ensembles.ground.rule import checked as checked
from ensembles.ground.rule import shown as shown

from .kinds import floating_type as floating_type
from .kinds import number_or_function as number_or_function
from .kinds import optimiser as optimiser
from .kinds import path as path
from .kinds import text as text
from .uses import check_fields as check_fields
from .uses import explained as explained
from .uses import field as field
from .uses import refuse_traced as refuse_traced
