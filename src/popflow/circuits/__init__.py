"""Quantum hypernetworks: binary neural networks from a variational circuit, exact truths, and classical search beside it."""
