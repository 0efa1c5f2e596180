"""Configs of diffusers that are refused, and that the message shows what was received."""

from pathlib import Path
from typing import Any

from refusals import Refusal, check, every

from kdiff_jax.adapters import diffusers as kd_diffusers


def config(name: str = "KDPM2Discrete", sampler: Any = None, **keys: Any) -> Any:
    return kd_diffusers.from_config({"_class_name": f"{name}Scheduler", **keys}, sampler)


REFUSED: list[Refusal] = [
    (lambda: config("PNDM"), "_class_name = 'PNDMScheduler'.*sampler='dpm2'"),
    (lambda: config(sampler="ddim"), "sampler = 'ddim'.*'dpm2_ancestral'"),
    (lambda: kd_diffusers.from_config({}), "_class_name = None.*sampler="),
    (
        lambda: config(use_karras_sigmas=True, use_beta_sigmas=True),
        "use_karras_sigmas and use_beta_sigmas.*keep one",
    ),
    (
        lambda: config("LCM", rescale_betas_zero_snr=True),
        "prediction_type='epsilon'.*rescale_betas_zero_snr=true",
    ),
    (
        lambda: config(rescale_betas_zero_snr=True),
        "prediction_type='epsilon'.*rescale_betas_zero_snr=true",
    ),
    (lambda: config(rescale_betas_zero_snr="no"), "rescale_betas_zero_snr = 'no'.*truth value"),
    (lambda: config("LCM", thresholding=True, sample_max_value=0.5), "sample_max_value = 0.5"),
    (lambda: config("LCM").schedule(), "num_steps = None and timesteps = None"),
    (lambda: config().schedule(5, strength=0.5), "strength given to a dpm2 sampler.*start_at"),
    (lambda: config().schedule(timesteps=[5]), "timesteps given to a dpm2 sampler"),
    (lambda: kd_diffusers.from_config(Path("no/such/folder")), "no scheduler config at no/such"),
]


@every(REFUSED)
def test_bad_configs_are_refused_by_name_with_what_was_received(call, message):
    check(call, message)
