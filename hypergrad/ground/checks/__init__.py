"""Arguments checked by a table: one rule a row, one error that names the argument and says what would be right.

@checked(random_key("key"), integer("size", least=1))
def minibatch(key, data, size): ...

class CG(AbstractLinearSolver):
    max_steps: int = field(integer("max_steps", least=1), 20)
"""

from .kinds import boolean as boolean
from .kinds import choice as choice
from .kinds import floating_type as floating_type
from .kinds import function as function
from .kinds import instance as instance
from .kinds import integer as integer
from .kinds import number_or_function as number_or_function
from .kinds import optimiser as optimiser
from .kinds import path as path
from .kinds import random_key as random_key
from .kinds import real as real
from .kinds import several as several
from .kinds import text as text
from .rule import Rule as Rule
from .rule import check_fields as check_fields
from .rule import checked as checked
from .rule import explained as explained
from .rule import field as field
from .rule import shown as shown
