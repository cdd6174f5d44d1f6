/// How far a stretch of pulse wave is to be believed.
#pragma once

#include <cstdint>

#include "ppg_beats.hpp"

namespace fajma {

/// What a stretch is judged by, each from 0 (useless) to 1 (nothing to find fault with).
///
/// Shape and rhythm as Orphanidou et al., IEEE J Biomed Health Inform 2015;19:832-8. The limits are ours, set on
/// the recordings that docs/firmware-ppg.md lists as used for fitting.
struct QualityMarks {
    float shape = 0;       ///< beats look like their mean
    float rhythm = 0;      ///< intervals are near their median; an irregular heart costs some of it
    float steadiness = 0;  ///< upstrokes are of one height
    float coverage = 0;    ///< beats are found all along
    float calm = 0;        ///< the wave stays within reach of its upstrokes: what goes beyond is motion
    float strength = 0;    ///< the pulsation is large enough for the sensor's noise

    /// The worst of them, 0 to 100: one fault is enough to be wrong.
    std::uint8_t percent() const;
};

/// Args: `beats` are those of `wave`, whose unit is shares of the level. All 0 with less than three beats.
QualityMarks judge(const Wave& wave, const Beats& beats);

}  // namespace fajma
