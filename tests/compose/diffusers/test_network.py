"""Prompts that become one prompt to the network are told apart, or told."""

from __future__ import annotations

import warnings

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from popflow.compose.diffusers import from_pipe, tiny
from popflow.core import PopflowWarning


def test_prompts_that_are_equal_after_truncation_are_told():
    model = from_pipe(tiny.stable_diffusion())
    long = "cat " * 80
    with warnings.catch_warnings():
        warnings.simplefilter("error", PopflowWarning)
        model.prompt(long + "dog")
        model.prompt("dog " + long)  # what differs comes first
    with pytest.warns(PopflowWarning, match=r"prompts 'cat cat .*dog' and 'cat .*red' have the same conditions, so they are one prompt"):
        model.prompt(long + "red")
