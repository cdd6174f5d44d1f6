/// From two pulse waves, red and infrared, to the oxygen saturation.
#pragma once

#include "ppg_beats.hpp"

namespace fajma {

/// (AC/DC of red) / (AC/DC of infrared).
struct Ratio {
    float value = 0;   ///< R; 0 when there is none
    float steady = 0;  ///< share of the beats that have this R, 0 to 1: a finger that moves has another one
};

/// R of a stretch: how much red changes with infrared, by least squares, which noise of red does not bend.
///
/// Changes are taken over 0.2 s, or a quarter of an interval: what is left of breathing hardly changes in it. Beats
/// whose R is far from their median do not count. Args: both are as long as each other and in shares of their levels;
/// `beats` are those of `infrared`; `begin` is the first sample to look at.
Ratio ratio_of_ratios(const Wave& red, const Wave& infrared, const Beats& beats, std::size_t begin);

/// %, not limited. The curve is empirical, as of every pulse oximeter: docs/firmware-ppg.md says what it was fitted to.
float spo2_percent(float ratio);

}  // namespace fajma
