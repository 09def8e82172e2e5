"""The activation scheme of Abdul-Razzak and Ghan (2000), for modes of any kappa, in NumPy."""

from typing import NamedTuple

import numpy as np
from scipy.special import erfc

GRAVITY, GAS = 9.81, 8.314462  # m/s², J/(mol K)
WATER, AIR = 0.0180153, 0.0289647  # kg/mol
DENSITY, HEAT = 1000.0, 1004.0  # of water, kg/m³; of air at constant pressure, J/(kg K)


class Modes(NamedTuple):
    """Lognormal modes along the last axis: number (m⁻³), median dry radius (m), geometric deviation, kappa."""

    number: np.ndarray
    radius: np.ndarray
    deviation: np.ndarray
    kappa: np.ndarray


def activated(updraft: np.ndarray, temperature: np.ndarray, pressure: np.ndarray, modes: Modes) -> np.ndarray:
    """Returns the activated fraction of each mode, shape (rows, modes); units m/s, K, Pa.

        S_max = [Σ_i S_i⁻² (f_i (ζ/η_i)^{3/2} + g_i (S_i²/(η_i + 3ζ))^{3/4})]^{-1/2}
        fraction_i = erfc(2 ln(S_i/S_max) / (3 √2 ln σ_i)) / 2

    with S_i the critical supersaturation of the median particle, f_i = exp(2.5 ln²σ_i)/2, g_i = 1 + ln σ_i/4, and
    ζ, η_i from updraft, condensation and the curvature of drops. Accommodation coefficient 1; properties of air and
    water as in Seinfeld and Pandis.

    **Source**: Abdul-Razzak and Ghan (2000), equations 6 to 13; kappa after Petters and Kreidenweis (2007).
    """
    celsius = temperature - 273.15
    vapour = 611.2 * np.exp(17.67 * celsius / (celsius + 243.5))
    latent = 2.5e6 - 2386.0 * celsius
    tension = 0.0761 - 1.55e-4 * celsius
    diffusivity = 1e-4 * 0.211 * (101325.0 / pressure) * (temperature / 273.0) ** 1.94
    conductivity = 1e-3 * (4.39 + 0.071 * temperature)
    heat = GAS * temperature
    alpha = GRAVITY * WATER * latent / (HEAT * heat * temperature) - GRAVITY * AIR / heat
    gamma = heat / (vapour * WATER) + WATER * latent**2 / (HEAT * AIR * temperature * pressure)
    growth = 1 / (
        DENSITY * heat / (vapour * diffusivity * WATER)
        + latent * DENSITY / (conductivity * temperature) * (latent * WATER / heat - 1)
    )
    curvature = 2 * tension * WATER / (DENSITY * heat)
    log_deviation = np.log(modes.deviation)
    f, g = 0.5 * np.exp(2.5 * log_deviation**2), 1 + 0.25 * log_deviation
    critical = 2 / np.sqrt(modes.kappa) * (curvature[:, None] / (3 * modes.radius)) ** 1.5
    zeta = (2 * curvature / 3 * np.sqrt(alpha * updraft / growth))[:, None]
    eta = ((alpha * updraft / growth) ** 1.5 / (2 * np.pi * DENSITY * gamma))[:, None] / modes.number
    terms = (f * (zeta / eta) ** 1.5 + g * (critical**2 / (eta + 3 * zeta)) ** 0.75) / critical**2
    highest = terms.sum(1, keepdims=True) ** -0.5
    return 0.5 * erfc(2 * np.log(critical / highest) / (3 * np.sqrt(2) * log_deviation))
