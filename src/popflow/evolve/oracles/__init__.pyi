from .pmo import OTHERS as OTHERS, TASKS as TASKS, Objective as Objective
from .terms import synthetic_accessibility as synthetic_accessibility
