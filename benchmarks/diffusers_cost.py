"""Cost of a composed step of a pretrained pipeline over the pipeline's own step, per network evaluation.

A Stable Diffusion U-Net of at least 50 million parameters with random weights, latents 4 x 64 x 64. M composed prompts of a batch of 2 are 2 M
rows of the network a step; the pipeline itself does as many rows with classifier-free guidance of a batch of M. Both go through their public
calls, side by side: each waits in its callback until it is its turn, and single steps alternate, ours first in every second pair (ABBA), so
that a machine that becomes slower or faster does so for both. Time is that of the processor on a CPU, one thread. The ratio of the medians and
the ratio of the sums are given, with the standard error of a bootstrap over pairs. The network is the same call on both sides and takes nearly
all of the time, so the time that a step spends outside of it is given too.

Peak memory is that of two steps: allocated on a GPU, of the process on a CPU (each side in its own process). On a CPU attention is left out at
64 x 64, where it would hide everything else; on a GPU the network has the size of Stable Diffusion 1.5 and computes in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from harness import Row, run

CLAIM = 1.03
DOWN, UP = ("DownBlock2D", "CrossAttnDownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
SIZES = {
    # side of the latents, channels of the levels, and which of them have attention
    "quick": (16, (32, 32, 64), (0, 1, 0)),
    "cpu": (64, (32, 64, 320, 512), (0, 1, 1, 0)),
    "cuda": (64, (320, 640, 1280, 1280), (1, 1, 1, 0)),
}


def pipeline(size: str, device: str, dtype: torch.dtype):
    """Stable Diffusion with a U-Net of one of `SIZES` and a tiny text encoder and autoencoder."""
    import diffusers

    from popflow.compose.diffusers import tiny

    pipe = tiny.stable_diffusion()
    side, widths, attention = SIZES[size]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel(
            sample_size=side,
            in_channels=4,
            out_channels=4,
            layers_per_block=2,
            block_out_channels=widths,
            down_block_types=tuple(DOWN[there] for there in attention),
            up_block_types=tuple(UP[there] for there in reversed(attention)),
            cross_attention_dim=8,
            attention_head_dim=8,
        )
    pipe.register_modules(unet=unet)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device, dtype)


Tick = Callable[..., dict]
"""A callback at the end of a step."""


def own(pipe, prompts: int, steps: int, seed: int, tick: Tick | None = None) -> None:
    """Steps of the pipeline's own call, with ``2 prompts`` rows."""
    options = {"num_inference_steps": steps, "guidance_scale": 7.5, "output_type": "latent", "callback_on_step_end": tick}
    pipe(["a cat"] * prompts, generator=torch.Generator().manual_seed(seed), **options)


def composed(pipe, prompts: int, steps: int, seed: int, tick: Tick | None = None) -> None:
    """Steps of AND, with ``2 prompts`` rows: M prompts of two runs, no guidance."""
    from popflow.compose.diffusers import ComposedPipeline

    texts = ["a cat", "a dog", "the red", "a blue"][:prompts]
    options = {"op": "and", "num_inference_steps": steps, "guidance_scale": 1.0, "num_images_per_prompt": 2, "output_type": "latent"}
    options |= {"noise_above": 0.0, "generator": torch.Generator().manual_seed(seed), "callback_on_step_end": tick}
    ComposedPipeline((pipe,))(texts, **options)


SIDES = {"theirs": own, "ours": composed}


@contextmanager
def stepping(call: Callable[[Tick], None]) -> Iterator[Callable[[], None]]:
    """Run a call in a thread that goes on for one step whenever the function that is given is called, and waits in between."""
    go, done = threading.Semaphore(0), threading.Semaphore(0)
    failed: list[BaseException] = []

    def tick(*_) -> dict:
        done.release()
        go.acquire()
        return {}

    def work() -> None:
        torch.set_num_threads(1)
        go.acquire()
        try:
            with torch.no_grad():
                call(tick)
        except BaseException as error:
            failed.append(error)
        done.release()

    def step() -> None:
        go.release()
        done.acquire()
        if failed:
            raise failed[0]

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield step
    go.release()
    thread.join()


Steps = list[tuple[float, float]]
"""Seconds of each step, and those of them that were spent in the network."""


def alternate(pipe, prompts: int, pairs: int, seed: int) -> dict[str, Steps]:
    """Time single steps of both sides in turn, after one that is not counted."""
    inside, entered = 0.0, 0.0

    def enter(*_) -> None:
        nonlocal entered
        entered = _now()

    def leave(*_) -> None:
        nonlocal inside
        inside += _now() - entered

    made: dict[str, Steps] = {side: [] for side in SIDES}
    with ExitStack() as stack:
        step = {
            side: stack.enter_context(stepping(lambda tick, call=call: call(pipe, prompts, pairs + 1, seed, tick)))
            for side, call in SIDES.items()
        }
        for one in step.values():
            one()
        hooks = [pipe.unet.register_forward_pre_hook(enter), pipe.unet.register_forward_hook(leave)]
        for pair in range(pairs):
            for side in SIDES if pair % 2 == 0 else reversed(SIDES):
                before, network = _now(), inside
                step[side]()
                made[side].append((_now() - before, inside - network))
        for hook in hooks:
            hook.remove()
    return made


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def _bootstrap(ours: list[float], theirs: list[float], of: Callable[[list[float]], float]) -> tuple[float, float]:
    """Ratio of a statistic of both, and its standard error over resampled pairs."""
    draws = torch.randint(len(ours), (500, len(ours)), generator=torch.Generator().manual_seed(0)).tolist()
    ratios = [of([ours[i] for i in draw]) / of([theirs[i] for i in draw]) for draw in draws]
    return of(ours) / of(theirs), statistics.stdev(ratios)


def peak(side: str, prompts: int) -> float:
    """Peak memory in MiB of two steps, in a process of its own."""
    command = [sys.executable, __file__, "--peak", side, "--prompts", str(prompts)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def measure_peak(side: str, prompts: int) -> None:
    import resource

    pipe = pipeline(*_where())
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        SIDES[side](pipe, prompts, 2, 0)
    if torch.cuda.is_available():
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


def _where() -> tuple[str, str, torch.dtype]:
    return ("cuda", "cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", "cpu", torch.float32)


def main(options: argparse.Namespace) -> list[Row]:
    """Time and memory of a composed step, M = 2, 3, 4 prompts."""
    try:
        import diffusers
    except ImportError as error:
        return [Row("diffusers", float("nan"), None, "", None, "<=", {"diffusers": f"absent: {error}"})]
    torch.set_num_threads(1)
    size, device, dtype = _where()
    size = "quick" if options.quick else size
    pipe = pipeline(size, device, dtype)
    side, _, attention = SIZES[size]
    given = {
        "parameters (millions)": sum(p.numel() for p in pipe.unet.parameters()) / 1e6,
        "latents": f"4 x {side} x {side}",
        "attention": "at sides " + ", ".join(str(side // 2**i) for i, there in enumerate(attention) if there),
        "device": device,
        "dtype": str(dtype),
        "threads": 1,
        "diffusers": diffusers.__version__,
    }
    target = None if options.quick else CLAIM
    rows = []
    for prompts in (2,) if options.quick else map(int, options.only):
        begin = time.perf_counter()
        made: dict[str, Steps] = {name: [] for name in SIDES}
        for seed in range(options.seeds):
            for name, steps in alternate(pipe, prompts, 24 // prompts, seed).items():
                made[name] += steps
        ours, theirs = ([whole for whole, _ in made[name]] for name in ("ours", "theirs"))
        network = statistics.median(inside for steps in made.values() for _, inside in steps)
        rest = {name: statistics.median(whole - inside for whole, inside in steps) for name, steps in made.items()}
        seconds = time.perf_counter() - begin
        notes = given | {"rows": 2 * prompts, "pairs": len(ours), "ours": made["ours"], "theirs": made["theirs"]}
        what = f"AND of {prompts} prompts, {2 * prompts} rows of the network a step"
        for kind, of in (("median", statistics.median), ("sum", sum)):
            ratio, error = _bootstrap(ours, theirs, of)
            peers = {f"diffusers, {kind} of seconds": of(theirs), f"popflow, {kind} of seconds": of(ours)}
            claim = f"{what}: {kind} of the times of {len(ours)} steps over that of the pipeline's own, attention {given['attention']}"
            rows.append(Row(claim, ratio, error, "", target, "<=", peers, seconds, notes))
            seconds, notes = 0.0, {}
        outside = {f"{name}, seconds outside of the network": value for name, value in rest.items()} | {"seconds in the network": network}
        claim = f"{what}: the same with one median time for the network of both"
        rows.append(Row(claim, (network + rest["ours"]) / (network + rest["theirs"]), None, "", None, "<=", outside))
        if not options.quick:
            begin = time.perf_counter()
            mib = {name: peak(name, prompts) for name in SIDES}
            claim = f"{what}: peak memory over the pipeline's own"
            peers = {f"{name}, MiB": value for name, value in mib.items()}
            rows.append(Row(claim, mib["ours"] / mib["theirs"], None, "", 1.05, "<=", peers, time.perf_counter() - begin))
    return rows


if __name__ == "__main__":
    if "--peak" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--peak", choices=SIDES)
        parser.add_argument("--prompts", type=int)
        given = parser.parse_args()
        measure_peak(given.peak, given.prompts)
    else:
        run("diffusers_cost", main, seeds=2, parts=("2", "3", "4"))
