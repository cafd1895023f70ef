"""Structures of Kronecker factors: dense, block-diagonal, triangular, hierarchical, Toeplitz."""
