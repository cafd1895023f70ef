"""Population dynamics from snapshots: transport, growth and bridges between samples taken at different times."""

from popflow.transport.snapshots import Snapshots

__all__ = ["Snapshots"]
