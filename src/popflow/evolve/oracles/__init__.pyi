from .command import Command as Command
from .docking import Box as Box, Docking as Docking, read_box as read_box
from .named import oracle as oracle
from .pmo import OTHERS as OTHERS, TASKS as TASKS, Objective as Objective
from .terms import synthetic_accessibility as synthetic_accessibility
