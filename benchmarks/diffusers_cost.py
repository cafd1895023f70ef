"""Cost of a composed step of a pretrained pipeline over the pipeline's own step, per network evaluation.

A Stable Diffusion U-Net of at least 50 million parameters with random weights, latents 4 x 64 x 64. M composed prompts of a batch of 2 are 2 M
rows of the network a step; the pipeline itself does as many rows with classifier-free guidance of a batch of M. Both go through their public
calls, in turn, step by step by their callbacks: the ratio of the medians over steps, its error from the spread between rounds. The network is
the same call on both sides and takes nearly all of the time, which on a shared machine varies by more than what is measured; so the time that
a step spends outside of the network is given too. Time is that of the processor on a CPU. Peak memory is that of two steps: allocated on a
GPU, of the process on a CPU (each side in its own process). Full attention is left out at 64 x 64, where it would hide everything else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from harness import Row, run

CLAIM = 1.03


def pipeline(quick: bool, device: str, dtype: torch.dtype):
    """Stable Diffusion with a wide U-Net and a tiny text encoder and autoencoder."""
    import diffusers

    from popflow.compose.diffusers import tiny

    pipe = tiny.stable_diffusion()
    widths = (32, 32, 64) if quick else (32, 64, 320, 512)
    inner = len(widths) - 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel(
            sample_size=16 if quick else 64,
            in_channels=4,
            out_channels=4,
            layers_per_block=2,
            block_out_channels=widths,
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * inner + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * inner + ("UpBlock2D",),
            cross_attention_dim=8,
            attention_head_dim=8,
        )
    pipe.register_modules(unet=unet)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device, dtype)


Steps = list[tuple[float, float]]
"""Seconds of each step, and those of them that were spent in the network."""


def own(pipe, prompts: int, steps: int) -> Steps:
    """Steps of the pipeline's own call, with ``2 prompts`` rows."""
    return _timed(
        pipe,
        lambda tick: pipe(
            ["a cat"] * prompts, num_inference_steps=steps, guidance_scale=7.5, output_type="latent", callback_on_step_end=tick
        ),
    )


def composed(pipe, prompts: int, steps: int, op: str) -> Steps:
    """Steps of the composition, with ``2 prompts`` rows: M prompts of two runs, no guidance."""
    from popflow.compose.diffusers import ComposedPipeline

    texts = ["a cat", "a dog", "the red", "a blue"][:prompts]
    options = {"op": op, "num_inference_steps": steps, "guidance_scale": 1.0, "num_images_per_prompt": 2, "output_type": "latent"}
    options |= {"noise_above": 0.0, "generator": torch.Generator().manual_seed(0)}
    made = ComposedPipeline((pipe,))
    return _timed(pipe, lambda tick: made(texts, callback_on_step_end=tick, **options))


def _timed(pipe, call: Callable) -> Steps:
    """Time between callbacks, after the first step."""
    at: list[tuple[float, float]] = []
    inside, entered = 0.0, 0.0

    def enter(*_) -> None:
        nonlocal entered
        entered = _now()

    def leave(*_) -> None:
        nonlocal inside
        inside += _now() - entered

    def tick(*_):
        at.append((_now(), inside))
        return {}

    hooks = [pipe.unet.register_forward_pre_hook(enter), pipe.unet.register_forward_hook(leave)]
    try:
        with torch.random.fork_rng(), torch.no_grad():
            call(tick)
    finally:
        for hook in hooks:
            hook.remove()
    return [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(at)]


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def peak(side: str, prompts: int, quick: bool) -> float:
    """Peak memory in MiB of two steps, in a process of its own."""
    command = [sys.executable, __file__, "--peak", side, "--prompts", str(prompts), *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def measure_peak(side: str, prompts: int, quick: bool) -> None:
    import resource

    pipe = pipeline(quick, *_where())
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    own(pipe, prompts, 2) if side == "own" else composed(pipe, prompts, 2, "and")
    if torch.cuda.is_available():
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


def _median(steps: Steps) -> float:
    return statistics.median(whole for whole, _ in steps)


def _where() -> tuple[str, torch.dtype]:
    return ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)


def main(options: argparse.Namespace) -> list[Row]:
    """Time and memory of a composed step, M = 2, 3, 4 prompts."""
    try:
        import diffusers
    except ImportError as error:
        return [Row("diffusers", float("nan"), None, "", None, "<=", {"diffusers": f"absent: {error}"})]
    device, dtype = _where()
    pipe = pipeline(options.quick, device, dtype)
    parameters = sum(p.numel() for p in pipe.unet.parameters()) / 1e6
    rounds, steps = (2, 4) if options.quick else (options.seeds, 5)
    rows = []
    for prompts in (2,) if options.quick else map(int, options.only):
        begin = time.perf_counter()
        ours, theirs, each = [], [], []
        for _ in range(rounds):
            here = {"theirs": own(pipe, prompts, steps), "ours": composed(pipe, prompts, steps, "and")}
            theirs += here["theirs"]
            ours += here["ours"]
            each.append(_median(ours[-steps + 1 :]) / _median(theirs[-steps + 1 :]))
        a, b = _median(ours), _median(theirs)
        network = statistics.median(inside for _, inside in ours + theirs)
        rest = {side: statistics.median(whole - inside for whole, inside in made) for side, made in (("ours", ours), ("theirs", theirs))}
        notes = {
            "parameters (millions)": parameters,
            "rows": 2 * prompts,
            "device": device,
            "dtype": str(dtype),
            "diffusers": diffusers.__version__,
            "ours": ours,
            "theirs": theirs,
            "fastest over fastest": min(ours)[0] / min(theirs)[0],
        }
        rows += [
            Row(
                f"AND of {prompts} prompts: time of a step over the pipeline's own, per evaluation",
                a / b,
                statistics.stdev(each) / len(each) ** 0.5,
                "",
                None if options.quick else CLAIM,
                "<=",
                {"diffusers, seconds a step": b, "popflow, seconds a step": a},
                time.perf_counter() - begin,
                notes,
            ),
            Row(
                f"AND of {prompts} prompts: the same with one time for the network of both",
                (network + rest["ours"]) / (network + rest["theirs"]),
                None,
                "",
                None,
                "<=",
                {f"seconds outside of the network, {side}": value for side, value in rest.items()} | {"seconds in the network": network},
            ),
        ]
        if not options.quick:
            mib = {side: peak(side, prompts, options.quick) for side in ("own", "composed")}
            rows.append(
                Row(
                    f"AND of {prompts} prompts: peak memory over the pipeline's own",
                    mib["composed"] / mib["own"],
                    None,
                    "",
                    1.05,
                    "<=",
                    {"MiB of the pipeline": mib["own"]},
                )
            )
    return rows


if __name__ == "__main__":
    if "--peak" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--peak")
        parser.add_argument("--prompts", type=int)
        parser.add_argument("--quick", action="store_true")
        given = parser.parse_args()
        measure_peak(given.peak, given.prompts, given.quick)
    else:
        run("diffusers_cost", main, seeds=4, parts=("2", "3", "4"))
