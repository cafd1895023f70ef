from .process import (
    Counted as Counted,
    Overdamped as Overdamped,
    Potential as Potential,
    Underdamped as Underdamped,
    force as force,
)
