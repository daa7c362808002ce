"""Parity with other people's code: of every stage at tiny width, and at full size with an official file.

    python -m scripts.parity stages                                              # UNet, VAE and towers at tiny width
    python -m scripts.parity picture --checkpoint sd_xl_base_1.0.safetensors     # 3 steps of dpmpp_sde karras at 256x256, profile a1111
    python -m scripts.parity page [--full LINES] [--box LINES]                   # docs/parity.md; LINES of `ldm parity --json`
    python -m scripts.parity refiner --checkpoint sd_xl_refiner_1.0.safetensors  # one UNet call

Prints the relative error of every stage; exit code 1 when a gate is missed. At full size each engine has a process of its own, one after
the other.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ldm.checkpoint.writer import save, tensor_items

PROMPT, NEGATIVE, SEED, STEPS, CFG = "a red apple on a blue table, studio light", "blurry", 11, 3, 5.0
HEIGHT, WIDTH = 256, 256
GATES = {"context": 1e-4, "vector": 1e-4, "latents": 1e-3, "image": 1e-3, "unet": 1e-5}


@torch.inference_mode()
def picture_ours(checkpoint: Path) -> dict[str, Tensor]:
    import ldm

    pipeline = ldm.load(checkpoint, device="cpu", dtype="float32")
    size = (HEIGHT, WIDTH)
    rows = [pipeline.encode(text, size=size) for text in (PROMPT, NEGATIVE)]
    start = time.perf_counter()
    result = pipeline.generate(
        PROMPT,
        NEGATIVE,
        width=WIDTH,
        height=HEIGHT,
        steps=STEPS,
        cfg=CFG,
        sampler="dpmpp_sde",
        schedule="karras",
        seed=SEED,
        profile="a1111",
        overrides={"rng": "cpu"},
    )
    print(f"ours: generate {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return {
        "context": torch.cat([row.context for row in rows]),
        "vector": torch.cat([row.vector for row in rows]),
        "latents": result.latents,
        "image": pipeline.decode(result.latents),
    }


@torch.inference_mode()
def picture_theirs(checkpoint: Path) -> dict[str, Tensor]:
    from diffusers.models.embeddings import get_timestep_embedding

    from scripts import theirs
    from tests.diffusion.foreign import k_diffusion

    context, pooled, ids = theirs.encode(checkpoint, [PROMPT, NEGATIVE], (HEIGHT, WIDTH))
    fourier = get_timestep_embedding(ids.flatten(), 256, flip_sin_to_cos=True, downscale_freq_shift=0).reshape(2, -1)
    network = theirs.unet(checkpoint, theirs.BASE_UNET)
    sampling = k_diffusion("sampling")
    sigmas = sampling.get_sigmas_karras(STEPS, *theirs.sigma_range())
    noise = torch.randn(1, 4, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(SEED))
    tree = sampling.BrownianTreeNoiseSampler(noise, sigmas[sigmas > 0].min(), sigmas.max(), seed=SEED)
    start = time.perf_counter()
    denoise = theirs.denoiser(network, context, pooled, ids, CFG)
    z = sampling.sample_dpmpp_sde(denoise, noise * sigmas[0], sigmas, extra_args={}, noise_sampler=tree, disable=True)
    image = theirs.vae(checkpoint).decode(z / 0.13025).sample.clamp(-1, 1)
    print(f"theirs: sampling and decoding {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return {"context": context, "vector": torch.cat([pooled, fourier], -1), "latents": z, "image": image}


def refiner_inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    drawn = {"x": (1, 4, 32, 32), "context": (1, 77, 1280), "pooled": (1, 1280)}
    return {name: torch.randn(shape, generator=generator) for name, shape in drawn.items()} | {
        "numbers": torch.tensor([[1024.0, 1024.0, 0.0, 0.0, 6.0]])
    }


@torch.inference_mode()
def refiner_ours(checkpoint: Path) -> dict[str, Tensor]:
    import ldm
    from ldm.text.conditioning import fourier

    given = refiner_inputs()
    unet = ldm.load(checkpoint, device="cpu", dtype="float32").unet
    vector = torch.cat([given["pooled"], fourier(given["numbers"])], -1)
    return {"unet": unet(given["x"], unet.prepare(given["context"], vector, [317.0]), 0)}


@torch.inference_mode()
def refiner_theirs(checkpoint: Path) -> dict[str, Tensor]:
    from scripts import theirs

    given = refiner_inputs()
    added = {"text_embeds": given["pooled"], "time_ids": given["numbers"]}
    return {"unet": theirs.unet(checkpoint, theirs.REFINER_UNET)(given["x"], 317.0, given["context"], added_cond_kwargs=added).sample}


WORK = {
    ("picture", "ours"): picture_ours,
    ("picture", "theirs"): picture_theirs,
    ("refiner", "ours"): refiner_ours,
    ("refiner", "theirs"): refiner_theirs,
}


def stages() -> bool:
    from ldm.measure import relative_error
    from tests.models import cases

    good = True
    for family in cases.FAMILIES:
        ours, theirs = cases.ours(family), cases.theirs(family)
        for stage in theirs:
            good &= tell(f"{family} {stage}", relative_error(ours[stage], theirs[stage]), theirs[stage], GATES["unet"])
    return good


def tell(what: str, error: float, reference: Tensor, gate: float) -> bool:
    rms = float(reference.square().mean().sqrt())
    print(f"{what:32} rms {rms:8.4f}   relative error {error:.1e}   gate {gate:.0e}   {'met' if error <= gate else 'MISSED'}")
    return error <= gate


def compare(what: str, checkpoint: Path) -> bool:
    from ldm.measure import relative_error

    with tempfile.TemporaryDirectory() as name:
        for engine in ("ours", "theirs"):
            subprocess.run(
                [sys.executable, "-m", "scripts.parity", what, "--checkpoint", str(checkpoint), "--engine", engine, "--out", name],
                check=True,
            )
        ours, theirs = (load_file(Path(name) / f"{engine}.safetensors") for engine in ("ours", "theirs"))
    good = ours.keys() == theirs.keys()
    for stage in theirs:
        good &= tell(f"{what} {stage}", relative_error(ours[stage], theirs[stage]), theirs[stage], GATES[stage])
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("stages", "picture", "refiner", "page"))
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--full", type=Path)
    parser.add_argument("--box", type=Path)
    parser.add_argument("--engine", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.what == "stages":
        return 0 if stages() else 1
    if args.what == "page":
        from scripts import parity_page

        parity_page.write(args.full, args.box)
        return 0
    if args.checkpoint is None:
        parser.error("--checkpoint is missing: python -m scripts.synthetic writes one")
    if args.engine is None:
        return 0 if compare(args.what, args.checkpoint) else 1
    outputs = WORK[args.what, args.engine](args.checkpoint)
    save(args.out / f"{args.engine}.safetensors", tensor_items(outputs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
