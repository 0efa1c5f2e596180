"""What is compiled for TPUs: every sampler and mode, on samples that share a batch axis.

    for name, case in cases(topology.devices).items():
        compiled = jax.jit(case.run).lower(*case.arguments).compile()

Arguments are shapes with shardings; nothing is computed. The samples are 192 MiB a chip: more than
the fastest memory of any chip holds, so that scratch counted in samples is scratch in its main one.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import kdiff_jax as kd
import networks
import tpu_scans
import unet

NOISE = kd.noise_schedule("scaled_linear")
STEPS = 10
BATCH, SHAPE = 16, (1024, 1024, 3)  # of one chip
Build = Callable[[], kd.Schedule]

SAMPLERS: dict[str, Build] = {
    "euler": lambda: kd.euler(kd.levels(NOISE, STEPS)),
    "euler eta": lambda: kd.euler(kd.levels(NOISE, STEPS), eta=1.0),
    "dpm2": lambda: kd.dpm2(kd.levels(NOISE, STEPS, grid="karras")),
    "ancestral": lambda: kd.dpm2_ancestral(kd.levels(NOISE, STEPS)),
    "lcm": lambda: kd.lcm(kd.lcm_levels(NOISE, 4)),
    "heun": lambda: kd.heun(kd.levels(NOISE, STEPS)),
    "2s": lambda: kd.dpmpp_2s_ancestral(kd.levels(NOISE, STEPS)),
    "sde": lambda: kd.dpmpp_sde(kd.levels(NOISE, STEPS)),
    "2m": lambda: kd.dpmpp_2m(kd.levels(NOISE, STEPS)),
    "2m sde": lambda: kd.dpmpp_2m(kd.levels(NOISE, STEPS), eta=1.0),
    "3m": lambda: kd.dpmpp_3m(kd.levels(NOISE, STEPS)),
    "unipc": lambda: kd.unipc(kd.levels(NOISE, STEPS)),
    "tcd": lambda: kd.tcd(kd.lcm_levels(NOISE, 4)),
}
# Samples of scratch that a run may take beside its input and its result: the anchor is one, a ring
# of estimates two or three; a step that saves or draws a path has the sample, the anchor and one
# more alive.
SCRATCH = {
    **dict.fromkeys(("euler", "euler eta", "lcm", "tcd"), 0.05),
    **dict.fromkeys(("dpm2", "ancestral", "heun", "2s", "sde"), 1.05),
    **dict.fromkeys(("2m", "2m sde"), 2.05),
    **dict.fromkeys(("3m", "unipc"), 3.05),
}
# Networks that kdiff_jax and the scans by hand are compared with, and samples of one chip.
COMPARED = (("digits U-Net", 16), ("digits U-Net", 256), ("bf16 DiT", 16))


@dataclasses.dataclass(frozen=True)
class Case:
    """A run to compile, and what its program is allowed."""

    run: Callable[..., Any]
    arguments: tuple[Any, ...]
    sample: tuple[int, ...]  # of one chip
    scratch: float | None = None  # in samples; None: most of it is the network's
    draws: bool = False  # random bits, under a condition
    always: bool = False  # random bits in every row, as rows of their own for each sample need
    host: bool = False
    copies: int | None = 0  # in loops; None: the network changes layouts, which is none of ours


class Place:
    """Shapes on a mesh over chips: the batch shared out, the rest on each of them."""

    def __init__(self, devices: Any):
        mesh = Mesh(np.array(devices).reshape(-1), ("batch",))
        self.chips = mesh.size
        self.batched = NamedSharding(mesh, PartitionSpec("batch"))
        self.everywhere = NamedSharding(mesh, PartitionSpec())

    def share(self, tree: Any) -> Any:
        return self._abstract(tree, self.batched)

    def copy(self, tree: Any) -> Any:
        return self._abstract(tree, self.everywhere)

    def batch(self, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        """[B, ...] of a chip, as a part of the whole batch."""
        whole = self.chips * shape[0], *shape[1:]
        return jax.ShapeDtypeStruct(whole, dtype, sharding=self.batched)

    def keys(self, batch: int) -> Any:
        """[B] keys."""
        key = jax.random.key(0)
        keys = jax.eval_shape(lambda: jax.random.split(key, batch * self.chips))
        return self.share(keys)

    @staticmethod
    def _abstract(tree: Any, sharding: NamedSharding) -> Any:
        def leaf(a: Any) -> jax.ShapeDtypeStruct:
            a = a if hasattr(a, "dtype") else jnp.asarray(a)
            return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)

        return jax.tree.map(leaf, tree)


def pointwise(params: Any, x: jax.Array, timestep: jax.Array, cond: Any = None) -> jax.Array:
    """A network that takes no memory of its own, and has a gradient that needs its input."""
    x = jnp.tanh(params * x)
    return x if cond is None else x * cond.reshape(-1, 1, 1, 1)


def _case(place: Place, name: str, **options: Any) -> Case:
    """kd.sample of a sampler; options of kd.sample, and fields of Case."""
    fields = {f.name for f in dataclasses.fields(Case)} & set(options)
    own = {key: options.pop(key) for key in fields}
    schedule = options.pop("schedule", None) or SAMPLERS[name]()
    stacked = schedule.rows.index.ndim > 1
    denoise = place.copy(options.pop("denoise", kd.denoiser(pointwise)))
    draws = schedule.rows.noise_weight is not None
    key = place.keys(BATCH) if draws else None
    key = place.copy(jax.random.key(0)) if options.pop("one_key", False) else key
    cond = place.batch((BATCH,)) if options.pop("cond", False) else None
    table = place.share(schedule) if stacked else place.copy(schedule)
    x, params = place.batch((BATCH, *SHAPE)), options.pop("params", 0.1)
    params = place.copy(jax.tree.map(jnp.float32, params))
    own = {"scratch": SCRATCH.get(name), "draws": draws and not stacked, "always": stacked} | own
    run = functools.partial(kd.sample, **options)
    return Case(run, (denoise, params, table, x, key, cond), (BATCH, *SHAPE), **own)


def _saved(state: kd.State, prediction: kd.Prediction, row: kd.Row) -> jax.Array:
    return prediction.denoised


def _gradient(place: Place, remat: Any, a_row: float, a_root: float, copies: int = 0) -> Case:
    """The bound: so many samples for each row, or for each of the root of their number."""
    schedule = kd.dpm2(kd.levels(NOISE, 13))
    rows = schedule.num_rows  # 25: segments of 5

    def gradient(params: Any, schedule: kd.Schedule, x: jax.Array) -> jax.Array:
        def loss_fn(x: jax.Array) -> jax.Array:
            out = kd.sample(kd.denoiser(pointwise), params, schedule, x, remat=remat)
            return jnp.sum(jnp.cos(out))

        return jax.grad(loss_fn)(x)

    x = place.batch((BATCH, *SHAPE))
    arguments = place.copy(jnp.float32(0.1)), place.copy(schedule), x
    return Case(
        gradient, arguments, (BATCH, *SHAPE), a_row * rows + a_root * rows**0.5, copies=copies
    )


def samplers(place: Place) -> dict[str, Case]:
    return {name: _case(place, name) for name in SAMPLERS}


def modes(place: Place) -> dict[str, Case]:
    plain, noise = kd.denoiser(pointwise), "ancestral"
    levels = kd.levels(NOISE, STEPS)
    flow = kd.flow_schedule(3.0)
    tables = [SAMPLERS["dpm2"](), SAMPLERS["euler"](), SAMPLERS[noise]()]
    batch = place.chips * BATCH
    stack = kd.stack((tables * batch)[:batch])
    guided = functools.partial(kd.guided, plain, 2.0, jnp.float32(0))
    case = functools.partial(_case, place)
    rows = SAMPLERS["dpm2"]().num_rows
    return {
        "one key": case(noise, one_key=True),
        "pad": case(noise, schedule=SAMPLERS[noise]().pad(2 * rows)),
        "stack": case("stack", schedule=stack, scratch=2.05),
        "save": case("dpm2", save_fn=_saved, scratch=3.1),
        "progress": case("dpm2", progress=True, host=True),
        "brownian": case(noise, noise_fn=kd.brownian_noise(), scratch=3.1),
        "remat rows": _gradient(place, "rows", 2.05, 0),
        # Four copies a segment.
        "remat segments": _gradient(place, "segments", 0, 4.05, copies=4),
        "guided, one call": case("dpm2", denoise=guided(), cond=True, scratch=8.1),
        "guided, two calls": case(
            "dpm2", denoise=guided(batched=False), cond=True, scratch=8.1
        ),
        "guided, interval": case(
            "dpm2", denoise=guided(batched=False, interval=(0.5, 5.0)), cond=True, scratch=8.1
        ),
        "guided, interval, stack": case(
            "stack", schedule=stack, denoise=guided(batched=False, interval=(0.5, 5.0)), cond=True,
            scratch=8.1,
        ),
        "cfg_plus_plus": case(
            "euler eta", denoise=kd.cfg_plus_plus(plain, 0.6, jnp.float32(0)), cond=True,
            scratch=8.1,
        ),
        "projected": case(
            "dpm2", denoise=kd.projected(plain, 2.0, jnp.float32(0), norm_threshold=1.0), cond=True,
            scratch=8.1,
        ),
        "autoguided": case(
            "dpm2", denoise=kd.autoguided(plain, 2.0), params=(0.1, 0.05), scratch=8.1
        ),
        # The anchor, and the magnitudes that are counted.
        "thresholded": case("dpm2", denoise=kd.thresholded(plain), scratch=2.05),
        "consistency": case("lcm", denoise=kd.consistency(kd.clipped(plain))),
        "inversion": case("dpm2", schedule=kd.dpm2(levels.reversed())),
        "flow": case("dpm2", schedule=kd.dpm2(kd.levels(flow, STEPS)),
                     denoise=kd.denoiser(pointwise, "flow_prediction")),
        "flow, ancestral": case(noise, schedule=kd.dpm2_ancestral(kd.levels(flow, STEPS)),
                                denoise=kd.denoiser(pointwise, "flow_prediction")),
        "churn": case("dpm2", schedule=kd.dpm2(levels.churned(s_churn=3.0))),
        "unroll": case(noise, unroll=2, scratch=3.05),
    }  # fmt: skip


@functools.cache
def _networks() -> dict[str, tuple[Any, Any, tuple[int, ...], Any]]:
    """name -> (model_fn, params as shapes, sample of one chip, dtype of the network)."""

    def weights(init: Callable[..., Any], dtype: Any, *options: Any) -> Any:
        params = jax.eval_shape(lambda: init(jax.random.key(0), *options))
        return jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), params)

    half, full = jnp.bfloat16, jnp.float32
    label = jnp.int32(3)

    def digits(params: Any, x: jax.Array, timestep: jax.Array) -> jax.Array:
        return unet.model_fn(params, x, timestep, jnp.full(x.shape[:1], label))

    medium = networks.MEDIUM
    of_unet = weights(networks.unet_params, half, medium.channels)
    of_dit = weights(networks.dit_params, half)
    return {
        "digits U-Net": (digits, weights(unet.init_params, full), (16, 28, 28, 1), None),
        "bf16 U-Net": (networks.unet, of_unet, (8, *medium.shape[1:]), half),
        "bf16 DiT": (networks.dit, of_dit, (8, 32, 32, networks.LATENTS), half),
    }


def with_networks(place: Place) -> dict[str, Case]:
    found = {}
    for network, (model_fn, params, shape, dtype) in _networks().items():
        others = ("2m", "unipc") if network == "digits U-Net" else ()
        for name in ("dpm2", "ancestral", *others):
            schedule = SAMPLERS[name]()
            draws = schedule.rows.noise_weight is not None
            keys = place.keys(shape[0]) if draws else None
            denoise = kd.denoiser(model_fn, dtype=dtype)
            tables = place.copy((params, schedule))
            arguments = (denoise, *tables, place.batch(shape), keys)
            found[f"{network}, {name}"] = Case(
                kd.sample, arguments, shape, draws=draws, copies=None
            )
    return found


def against_scans(place: Place) -> Iterator[tuple[str, int, int, Case, dict[str, Case]]]:
    """(name, rows, rows that draw, kdiff_jax, the scans by hand): a network on one chip."""
    for network, batch in COMPARED:
        model_fn, params, (_, *sample), dtype = _networks()[network]
        shape = batch, *sample
        params, x = place.copy(params), place.batch(shape)
        denoise = kd.denoiser(model_fn, dtype=dtype)
        for name, scans in tpu_scans.SCANS.items():
            schedule = SAMPLERS[name]()
            weight = schedule.rows.noise_weight
            keys = None if weight is None else place.keys(shape[0])
            ours = Case(kd.sample, (denoise, params, place.copy(schedule), x, keys), shape)
            table = place.copy(tpu_scans.table_of(name, schedule))

            def by_hand(
                params: Any, x: jax.Array, keys: Any, table: Any, scan: Any,
                model_fn: Any = model_fn, dtype: Any = dtype,
            ) -> jax.Array:  # fmt: skip
                def model(x: jax.Array, timestep: jax.Array) -> jax.Array:
                    return model_fn(params, x.astype(dtype or x.dtype), timestep)

                return scan(model, x, keys, table)

            rivals = {
                way: Case(functools.partial(by_hand, scan=scan), (params, x, keys, table), shape)
                for way, scan in scans.items()
            }
            draws = 0 if weight is None else int((np.asarray(weight) != 0).sum())
            yield f"{name}, {network}, {batch} samples", schedule.num_rows, draws, ours, rivals
