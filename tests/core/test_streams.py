"""Named random streams: independent, resumable, seeded once."""

from __future__ import annotations

import pytest
import torch

from popflow.core import CheckpointError, Streams, StreamsOfRuns, multinomial


def test_drawing_from_one_stream_leaves_the_others_as_they_were() -> None:
    alone, busy = Streams(3), Streams(3)
    busy.uniform("resample", (100,))
    assert torch.equal(alone.normal("noise", torch.zeros(5)), busy.normal("noise", torch.zeros(5)))


def test_names_and_seeds_give_different_numbers_and_equal_ones_the_same() -> None:
    like = torch.zeros(1000, dtype=torch.float64)
    a, b, c = Streams(0).normal("noise", like), Streams(0).normal("kernel", like), Streams(1).normal("noise", like)
    assert torch.equal(a, Streams(0).normal("noise", like))
    for other in (b, c):
        assert abs(torch.corrcoef(torch.stack([a, other]))[0, 1]) < 0.1


def test_the_seed_and_name_fix_the_numbers_for_good() -> None:
    # a change here breaks every recorded run
    assert Streams(0)("noise").initial_seed() == 3674443432713553628


def test_state_resumes_every_stream_and_forgets_the_rest() -> None:
    rng = Streams(5)
    rng.normal("noise", torch.zeros(3))
    rng.uniform("resample", (2,))
    saved = {name: value.clone() for name, value in rng.state().items()}
    assert set(saved) == {"noise", "resample"}
    ahead = (rng.normal("noise", torch.zeros(4)), rng.uniform("resample", (2,)), rng.normal("kernel", torch.zeros(2)))
    other = Streams(5)
    other.normal("kernel", torch.zeros(7))
    other.load(saved)
    again = (other.normal("noise", torch.zeros(4)), other.uniform("resample", (2,)), other.normal("kernel", torch.zeros(2)))
    assert all(torch.equal(x, y) for x, y in zip(ahead, again, strict=True))


@pytest.mark.parametrize("state", [torch.zeros(16, dtype=torch.uint8), torch.zeros(5056), torch.zeros(0, dtype=torch.uint8)])
def test_a_state_of_another_generator_is_named_and_changes_nothing(state: torch.Tensor) -> None:
    rng = Streams(0)
    rng.normal("noise", torch.zeros(3))
    before = rng.state()
    with pytest.raises(CheckpointError, match="the state of stream 'kernel' does not fit a generator on cpu"):
        rng.load({"noise": Streams(1)("noise").get_state(), "kernel": state})
    assert rng.state().keys() == before.keys()
    assert torch.equal(rng.state()["noise"], before["noise"])


def test_shape_and_dtype_follow_the_tensor() -> None:
    drawn = Streams(0).normal("noise", torch.zeros(2, 3, 4, dtype=torch.float64))
    assert drawn.shape == (2, 3, 4)
    assert drawn.dtype == torch.float64
    uniform = Streams(0).uniform("resample", (3, 1))
    assert uniform.dtype == torch.float64
    assert ((uniform >= 0) & (uniform < 1)).all()


@pytest.mark.parametrize("seed", [True, "0", 1.5, None])
def test_a_seed_that_is_no_integer_is_named(seed: object) -> None:
    with pytest.raises(TypeError, match="seed"):
        Streams(seed)  # type: ignore[arg-type]


def test_negative_and_large_seeds_serve() -> None:
    assert not torch.equal(Streams(-1).uniform("a", (3,)), Streams(2**80).uniform("a", (3,)))


def test_a_run_does_not_depend_on_how_many_others_there_are() -> None:
    few, many = StreamsOfRuns.of(5, 2), StreamsOfRuns.of(5, 4)
    alone = Streams(5)
    for _ in range(2):  # later draws neither
        small, large = (rng.normal("noise", torch.zeros(runs, 3)) for rng, runs in ((few, 2), (many, 4)))
        assert torch.equal(small, large[:2])
        assert torch.equal(small[:1], alone.normal("noise", torch.zeros(1, 3)))  # the first run keeps the seed
        assert not torch.equal(large[0], large[1])
        weights = torch.tensor([[0.1, 0.2, 0.7]]).repeat(4, 1)
        assert torch.equal(few.each("resample", multinomial, weights[:2]), many.each("resample", multinomial, weights)[:2])
        assert torch.equal(few.uniform("kernel", (2, 3)), many.uniform("kernel", (4, 3))[:2])


def test_streams_of_runs_resume_where_they_were() -> None:
    rng, other = StreamsOfRuns([1, 2]), StreamsOfRuns([1, 2])
    rng.normal("noise", torch.zeros(2, 3))
    other.load(rng.state())
    assert sorted(rng.state()) == ["0/noise", "1/noise"]
    assert torch.equal(rng.normal("noise", torch.zeros(2, 3)), other.normal("noise", torch.zeros(2, 3)))
    with pytest.raises(CheckpointError, match=r"are not those of 1 runs"):
        StreamsOfRuns([1]).load(rng.state())
    with pytest.raises(ValueError, match=r"tensors of \[3\] runs for the streams of 2"):
        rng.normal("noise", torch.zeros(3, 3))
    with pytest.raises(ValueError, match="seeds is empty"):
        StreamsOfRuns([])
