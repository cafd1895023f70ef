"""Protein backbones as frames: rotations and translations of residues."""
