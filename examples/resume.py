r"""A run that stops in mid-trajectory and goes on in another process, to the same bits.

    python examples/resume.py                                     # the whole run
    python examples/resume.py --stop-after 8 --file run.npz       # ends early, as if switched off
    python examples/resume.py --resume run.npz                    # goes on; the same checksum

What a sampler knows in mid-trajectory is little: the sample and its anchor (`kd.State`), the key,
the number of the next row, and what rebuilds the schedule. It may stop between the two rows of a
DPM2 step too. The noise of a row comes from the key and the row alone, so nothing else is kept.

The rows run in chunks of `--every`, one compiled `lax.scan` each, and the file is written after
each. Both runs go through the same chunks, and so through the same programs: the bits agree on one
kind of machine, with one version of JAX.
"""

import argparse
import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import digits
import kdiff_jax as kd
import unet


@jax.jit
def run_rows(
    denoise: Any, params: Any, state: kd.State, rows: kd.Row, key: jax.Array, cond: Any
) -> kd.State:
    """A part of a run: `rows` is a slice of `schedule.rows`."""

    def body(state: kd.State, row: kd.Row) -> tuple[kd.State, None]:
        prediction = denoise(params, state.sample, row, cond)
        return kd.step(state, row, prediction, key=key), None

    return jax.lax.scan(body, state, rows)[0]


def save(path: Path, state: kd.State, key: jax.Array, row: int, settings: dict[str, Any]) -> None:
    """All of a run in one file; a reader sees a whole file, the old one or the new."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.savez(
            file,
            sample=np.asarray(state.sample),
            anchor=np.asarray(state.anchor),
            key=np.asarray(jax.random.key_data(key)),
            row=np.int64(row),
            settings=np.array(json.dumps(settings)),
        )
    os.replace(temporary, path)


def load(path: Path, settings: dict[str, Any]) -> tuple[kd.State, jax.Array, int]:
    """(state, key, row) of a file that `save` wrote in a run of the same settings."""
    try:
        with path.open("rb") as file, np.load(file) as archive:
            saved = {name: archive[name] for name in ("sample", "anchor", "key", "row", "settings")}
        found = json.loads(str(saved["settings"]))
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} was not written by this script ({error}); give its file."
        ) from None
    if found != settings:
        differing = sorted(
            name for name in found | settings if found.get(name) != settings.get(name)
        )
        raise ValueError(
            f"{path} is of another run: {', '.join(differing)} differ: it has "
            f"{[found.get(name) for name in differing]}, this run "
            f"{[settings.get(name) for name in differing]}; give the arguments it was begun with."
        )
    state = kd.State(jnp.asarray(saved["sample"]), jnp.asarray(saved["anchor"]))
    return state, jax.random.wrap_key_data(jnp.asarray(saved["key"])), int(saved["row"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=12, help="outer steps N, of 2N - 1 rows")
    parser.add_argument("--eta", type=float, default=1.0)
    parser.add_argument("--class", dest="classes", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=4, help="rows in one program, and to a file")
    parser.add_argument("--file", type=Path, help="where the run is kept, after every chunk")
    parser.add_argument("--stop-after", type=int, metavar="ROW", help="a multiple of --every")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="go on from there")
    args = parser.parse_args()
    path = args.file or args.resume
    if not set(args.classes) <= set(range(10)) or args.every < 1:
        parser.error(f"--class {args.classes} --every {args.every}: classes 0 to 9, every >= 1")
    if args.stop_after is not None and (args.stop_after < 1 or args.stop_after % args.every):
        parser.error(f"--stop-after {args.stop_after}: a positive multiple of --every {args.every}")
    if args.stop_after is not None and path is None:
        parser.error("--stop-after without --file: give the file that keeps the run")

    # All that decides the samples, besides the state: from here the schedule is rebuilt.
    settings = {
        "steps": args.steps,
        "eta": args.eta,
        "classes": args.classes,
        "seed": args.seed,
        "every": args.every,
        "weights": hashlib.sha256(digits.WEIGHTS.read_bytes()).hexdigest()[:16],
    }
    schedule = kd.dpm2_ancestral_schedule(
        digits.training_noise(), args.steps, eta=args.eta, grid="karras"
    )
    if args.resume is None:
        key = jax.random.key(args.seed)
        x = kd.initial_sample(schedule, key, (len(args.classes), 28, 28, 1))
        state, first = kd.init(schedule, x), 0
    else:
        state, key, first = load(args.resume, settings)

    _, params = unet.load(digits.WEIGHTS)
    denoise = digits.digits_denoiser()
    labels = jnp.asarray(args.classes, jnp.int32)
    with tqdm(total=schedule.num_rows, initial=first, unit="row") as bar:
        for row in range(first, schedule.num_rows, args.every):
            rows = jax.tree.map(lambda leaf, i=row: leaf[i : i + args.every], schedule.rows)
            state = jax.block_until_ready(run_rows(denoise, params, state, rows, key, labels))
            done = row + len(rows.index)
            bar.update(done - row)
            if path is not None:
                save(path, state, key, done, settings)
            if done == args.stop_after and done < schedule.num_rows:
                print(f"stopped after row {done} of {schedule.num_rows}; the run is in {path}")
                return
    images = np.asarray(state.sample)
    print(f"{len(images)} digits, sha256 {hashlib.sha256(images.tobytes()).hexdigest()}")


if __name__ == "__main__":
    main()
