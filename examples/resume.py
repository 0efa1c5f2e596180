r"""A run that stops in mid-trajectory and goes on in another process, to the same bits.

    python examples/resume.py                                     # the whole run
    python examples/resume.py --stop-after 8 --file run.npz       # ends early, as if switched off
    python examples/resume.py --resume run.npz                    # goes on; the same checksum

What a sampler knows in mid-trajectory is little: its `kd.State` (the sample, and the histories that
the rows read, for DPM2 the anchor), the key, the number of the next row, and what rebuilds the
schedule. It may stop between the two rows of a DPM2 step too. The noise of a row comes from the key
and the row alone, so nothing else is kept. From row a of a State, the rest of the run is

    kd.sample(denoise, params, schedule[a:], state, key, cond)

The rows run in chunks of `--every`, `schedule[a:b]`, and the file is written after each but the
last, which `kd.sample` runs. Both runs go through the same chunks, and so through the same
programs: the bits agree on one kind of machine, with one version of JAX.
"""

import hashlib
import json
import os
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import commands
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import digits
import kdiff_jax as kd
import unet


@jax.jit
def run_rows(
    denoise: Any, params: Any, rows: kd.Row, state: kd.State, key: jax.Array, cond: Any
) -> kd.State:
    """The State after a part of a run, to be saved; `rows` are those of a slice of its schedule."""

    def body(state: kd.State, row: kd.Row) -> tuple[kd.State, None]:
        prediction = denoise(params, state.sample, row, cond)
        return kd.step(state, row, prediction, key=key), None

    return jax.lax.scan(body, state, rows)[0]


def save(path: Path, state: kd.State, key: jax.Array, row: int, settings: dict[str, Any]) -> None:
    """All of a run in one file; a reader sees a whole file, the old one or the new."""
    arrays: dict[str, Any] = {
        "key": jax.random.key_data(key),
        "row": np.int64(row),
        "settings": np.array(json.dumps(settings)),
        # A history that no row reads is None.
        **{name: leaf for name, leaf in vars(state).items() if leaf is not None},
    }
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(temporary, path)


def load(path: Path, settings: dict[str, Any]) -> tuple[kd.State, jax.Array, int]:
    """(state, key, row) of a file that `save` wrote in a run of the same settings."""
    try:
        with path.open("rb") as file, np.load(file) as archive:
            saved = {name: archive[name] for name in archive.files}
        key, row = jax.random.wrap_key_data(jnp.asarray(saved["key"])), int(saved["row"])
        names = [field.name for field in fields(kd.State) if field.name in saved]
        state = kd.State(**{name: jnp.asarray(saved[name]) for name in names})
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
    return state, key, row


def main() -> None:
    parser = commands.parser(__doc__)
    add, count, digit = parser.add_argument, commands.count, commands.digit
    everything = list(range(10))
    add("--steps", type=count, default=12, help="outer steps N, of 2N - 1 rows")
    add("--eta", type=commands.number, default=1.0, help="noise of a step; 0 is none")
    add("--class", dest="classes", type=digit, nargs="+", default=everything, help="which digits")
    add("--seed", type=commands.seed, default=0, help="of all noise")
    add("--every", type=count, default=4, help="rows in one program, and to a file")
    add("--file", type=commands.output, help="where the run is kept, after every chunk")
    add("--stop-after", type=count, metavar="ROW", help="a multiple of --every")
    add("--resume", type=commands.file, metavar="FILE", help="go on from there")
    args = parser.parse_args()
    path = args.file or args.resume
    if args.stop_after is not None and args.stop_after % args.every:
        parser.error(f"--stop-after {args.stop_after}: a multiple of --every {args.every}")
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
    with commands.refused(parser):
        levels = kd.levels(digits.training_noise(), args.steps, grid="karras")
        schedule = kd.dpm2_ancestral(levels, eta=args.eta)
        if args.resume is not None:
            state, key, first = load(args.resume, settings)
    if args.resume is None:
        key, first = jax.random.key(args.seed), 0
        x = kd.initial_sample(schedule, key, (len(args.classes), 28, 28, 1))
        state = kd.init(schedule, x)

    _, params = unet.load(digits.WEIGHTS)
    denoise = digits.digits_denoiser()
    labels = jnp.asarray(args.classes, jnp.int32)
    with tqdm(total=schedule.num_rows, initial=first, unit="row") as bar:
        row = first
        while row + args.every < schedule.num_rows:
            rows = schedule[row : row + args.every].rows
            state = jax.block_until_ready(run_rows(denoise, params, rows, state, key, labels))
            row += args.every
            bar.update(args.every)
            if path is not None:
                save(path, state, key, row, settings)
            if row == args.stop_after:
                print(f"stopped after row {row} of {schedule.num_rows}; the run is in {path}")
                return
        images = np.asarray(kd.sample(denoise, params, schedule[row:], state, key, labels))
        bar.update(schedule.num_rows - row)
    if path is not None:
        print(f"wrote {path}: the run as it was before its last chunk")
    print(f"{len(images)} digits, sha256 {hashlib.sha256(images.tobytes()).hexdigest()}")


if __name__ == "__main__":
    main()
