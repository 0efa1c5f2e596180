"""Facts about diffusers' schedulers: which sampler is which class, and the keys of configs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import kdiff_jax as kd
from kdiff_jax.adapters.diffusers.defaults import (
    DDIM_KEYS,
    DPM2_KEYS,
    EULER_ANCESTRAL_KEYS,
    EULER_KEYS,
    HEUN_KEYS,
    LCM_KEYS,
    MULTISTEP_KEYS,
    SINGLESTEP_KEYS,
    UNIPC_KEYS,
)
from kdiff_jax.adapters.diffusers.levels import (
    Config,
    ddim_levels,
    solver_levels,
    spaced_levels,
)
from kdiff_jax.adapters.diffusers.solvers import multistep, singlestep, unipc

SamplerName = Literal[
    "euler",
    "euler_ancestral",
    "ddim",
    "heun",
    "dpm2",
    "dpm2_ancestral",
    "dpmpp_2s",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "dpmpp_2m",
    "dpmpp_3m",
    "unipc",
    "lcm",
    "tcd",
]
ClassName = Literal[
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DDIMScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
    "TCDScheduler",
]
FlowClassName = Literal[
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
]


@dataclass(frozen=True)
class Method:
    """A sampler of this library, and the class of diffusers that it is there.

    Attributes:
      build: the sampler, a function of levels.
      class_name: the class of diffusers, of a config with a beta schedule.
      keys: the parameters of that class, and its defaults.
      ours: keys that are honoured here and that the class has not; written back where set.
      levels: the levels of N steps, a function of the noise schedule, N and the config.
      table: of levels and the config, where keys of the class choose the table; else `build`.
      options: keys of few values, and those that can be honoured.
      aliases: values that diffusers takes for another, as (key, value).
      required: keys that must have one of these values, or be left out.
      fixed: keys that the sampler's name decides.
      own_class: whether class_name means this sampler; else a config of ours names it beside.
      clips: "" or what clips the estimate of x0: "both" halves of a prediction, or "denoised" only,
        beside the epsilon of the network.
      distilled: "" or the sampler that runs on the distillation grid of a consistency network; the
        boundary scaling of "lcm" belongs to the denoiser.
      flow_class_name: the class of diffusers that a flow-matching config is written for.
    """

    build: Callable[[kd.Levels], kd.Schedule]
    class_name: ClassName
    keys: Config
    ours: Config = field(default_factory=dict)
    levels: Callable[[kd.NoiseSchedule, int | None, Config], kd.Levels] = spaced_levels
    clips: Literal["", "both", "denoised"] = ""
    distilled: Literal["", "lcm", "tcd"] = ""
    flow_class_name: FlowClassName = "FlowMatchEulerDiscreteScheduler"
    table: Callable[[kd.Levels, Config], kd.Schedule] | None = None
    options: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    aliases: Mapping[tuple[str, str], str] = field(default_factory=dict)
    required: Mapping[str, tuple[object, ...]] = field(default_factory=lambda: REQUIRED)
    fixed: Config = field(default_factory=dict)
    own_class: bool = True


# What a key must be for its config to be read; any other value changes what is sampled.
_GRID_ENDS: Mapping[str, tuple[object, ...]] = {
    "interpolation_type": (None, "linear"),
    "timestep_type": (None, "discrete"),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "snr_shift_scale": (None, 1.0),
}
REQUIRED: Mapping[str, tuple[object, ...]] = {
    **_GRID_ENDS,
    "final_sigmas_type": (None, "zero"),
    "use_flow_sigmas": (None, False),
    "use_lu_lambdas": (None, False),
}
FLOW_REQUIRED: Mapping[str, tuple[object, ...]] = {
    "invert_sigmas": (None, False),
    "scale_factors": (None, []),
}
_UNLEARNED = (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
SOLVER_REQUIRED: Mapping[str, tuple[object, ...]] = {
    **_GRID_ENDS,
    "lambda_min_clipped": (None, -math.inf),
    "variance_type": _UNLEARNED,
}
SINGLESTEP_REQUIRED = {**SOLVER_REQUIRED, "use_lu_lambdas": (None, False)}
UNIPC_REQUIRED: Mapping[str, tuple[object, ...]] = {
    **_GRID_ENDS,
    "predict_x0": (None, True),
    "solver_p": (None,),
    "use_lu_lambdas": (None, False),
}


ZERO_SNR: Config = {"rescale_betas_zero_snr": False}

_ENDS = ("zero", "sigma_min")
_OF_DPM: dict[str, tuple[object, ...]] = {
    "solver_type": ("midpoint", "heun"),
    "final_sigmas_type": _ENDS,
}
_OF_DPM |= {"time_shift_type": ("exponential",)}
_DPM_ALIASES = {("solver_type", name): "midpoint" for name in ("logrho", "bh1", "bh2")}
_DPM_ALIASES |= {("algorithm_type", "deis"): "dpmsolver++"}
_multistep = functools.partial(
    Method,
    class_name="DPMSolverMultistepScheduler",
    keys=MULTISTEP_KEYS,
    levels=solver_levels,
    table=multistep,
    clips="both",
    options={
        **_OF_DPM,
        "solver_order": (1, 2, 3),
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    },
    aliases=_DPM_ALIASES,
    required=SOLVER_REQUIRED,
)
_rounded = functools.partial(spaced_levels, rounded=True)
# A sampler is a name in SamplerName and a line here.
METHODS: dict[SamplerName, Method] = {
    "euler": Method(kd.euler, "EulerDiscreteScheduler", EULER_KEYS),
    "euler_ancestral": Method(
        functools.partial(kd.euler, eta=1.0),
        "EulerAncestralDiscreteScheduler",
        EULER_ANCESTRAL_KEYS,
    ),
    "ddim": Method(kd.euler, "DDIMScheduler", DDIM_KEYS, levels=ddim_levels, clips="denoised"),
    "heun": Method(
        kd.heun,
        "HeunDiscreteScheduler",
        HEUN_KEYS,
        ZERO_SNR,
        clips="both",
        flow_class_name="FlowMatchHeunDiscreteScheduler",
    ),
    "dpm2": Method(kd.dpm2, "KDPM2DiscreteScheduler", DPM2_KEYS, ZERO_SNR, _rounded),
    "dpm2_ancestral": Method(
        kd.dpm2_ancestral, "KDPM2AncestralDiscreteScheduler", DPM2_KEYS, ZERO_SNR, _rounded
    ),
    "dpmpp_2s": Method(
        functools.partial(singlestep, config=SINGLESTEP_KEYS),
        "DPMSolverSinglestepScheduler",
        SINGLESTEP_KEYS,
        levels=solver_levels,
        table=singlestep,
        clips="both",
        options={**_OF_DPM, "solver_order": (1, 2), "algorithm_type": ("dpmsolver++",)},
        aliases=_DPM_ALIASES,
        required=SINGLESTEP_REQUIRED,
    ),
    "dpmpp_2s_ancestral": Method(
        kd.dpmpp_2s_ancestral, "EulerDiscreteScheduler", EULER_KEYS, own_class=False
    ),
    "dpmpp_sde": Method(kd.dpmpp_sde, "EulerDiscreteScheduler", EULER_KEYS, own_class=False),
    "dpmpp_2m": _multistep(kd.dpmpp_2m, fixed={"solver_order": 2}),
    "dpmpp_3m": _multistep(kd.dpmpp_3m, fixed={"solver_order": 3}),
    "unipc": Method(
        kd.unipc,
        "UniPCMultistepScheduler",
        UNIPC_KEYS,
        levels=solver_levels,
        table=unipc,
        clips="both",
        options={
            "solver_order": (2,),
            "solver_type": ("bh2",),
            "final_sigmas_type": _ENDS,
            "time_shift_type": ("exponential", "linear"),
        },
        aliases={("solver_type", name): "bh2" for name in ("midpoint", "heun", "logrho")},
        required=UNIPC_REQUIRED,
    ),
    "lcm": Method(
        kd.lcm,
        "LCMScheduler",
        LCM_KEYS,
        clips="both",
        distilled="lcm",
        flow_class_name="FlowMatchLCMScheduler",
    ),
    "tcd": Method(kd.tcd, "TCDScheduler", LCM_KEYS, distilled="tcd"),
}

FLOW_KEYS: Config = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "time_shift_type": "exponential",
}
# The flow-matching classes that can be read, and the sampler that a class means by itself.
FLOW_CLASSES: dict[str, SamplerName] = {
    "FlowMatchEulerDiscreteScheduler": "euler",
    "FlowMatchHeunDiscreteScheduler": "heun",
    "FlowMatchLCMScheduler": "lcm",
}
# Names in a config of ours the one of the samplers that share a class, or have none.
SAMPLER_KEY = "kdiff_jax_sampler"
# Of FlowMatchEulerDiscreteScheduler: fresh noise in every step, which is LCM on a flow.
STOCHASTIC_KEY = "stochastic_sampling"

# The classes that cannot be read, by how their names begin.
NO_BETA_SCHEDULE = {
    "FlowMatch": "flow matching",
    "FlowMap": "a flow map",
    "LTXEulerAncestralRF": "rectified flow",
    "RectifiedFlow": "rectified flow",
    "Helios": "flow matching",
    "Piflow": "flow matching",
    "MiniMaxH3": "flow matching",
    "SCM": "a trigonometric flow",
    "EDM": "EDM",
    "CosineDPMSolver": "a cosine schedule in EDM form",
    "CMStochasticIterative": "a consistency model in EDM form",
    "ConsistencyDecoder": "a consistency decoder",
    "CogVideoX": "a process with shifted noise levels",
    "KarrasVe": "a variance-exploding process",
    "ScoreSde": "a score SDE",
    "IPNDM": "fixed angles",
    "DDPMWuerstchen": "a continuous cosine process",
    "VQDiffusion": "discrete tokens",
    "Amused": "discrete tokens",
    "BlockRefinement": "discrete tokens",
    "DiscreteDDIM": "discrete tokens",
    "EntropyBound": "discrete tokens",
}
