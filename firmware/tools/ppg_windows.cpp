/// What the pulse oximeter makes of a recording: `ppg_windows RATE_HZ EVERY_S [FULL_SCALE [OFF_BELOW]] < CSV`.
///
/// Reads lines `red,infrared` of counts, writes a line for every `EVERY_S` seconds and one at the end:
/// `end_s,heart_rate,spo2,quality,ratio,contact,moving,saturated,swapped`; what is not measured is empty.
#include <cstdio>
#include <cstdlib>

#include "ppg.hpp"

namespace {

void tell(fajma::Ppg& ppg, double end_s) {
    const fajma::PpgMeasurement now = ppg.measure();
    std::printf("%.3f,", end_s);
    if (now.has_heart_rate) {
        std::printf("%.1f", now.heart_rate / static_cast<double>(fajma::scale));
    }
    std::printf(",");
    if (now.has_spo2) {
        std::printf("%.1f", now.spo2 / static_cast<double>(fajma::scale));
    }
    std::printf(",%u,%.4f,%d,%d,%d,%d\n", static_cast<unsigned>(now.quality), static_cast<double>(now.ratio),
                static_cast<int>(now.contact), now.moving, now.saturated, now.swapped);
}

}  // namespace

int main(int count, char** arguments) {
    if (count < 3) {
        std::fprintf(stderr, "usage: ppg_windows RATE_HZ EVERY_S [FULL_SCALE [OFF_BELOW]] < CSV\n");
        return 2;
    }
    fajma::PpgSetup setup;
    setup.rate_hz = std::strtof(arguments[1], nullptr);
    const double every_s = std::strtod(arguments[2], nullptr);
    if (count > 3) {
        setup.full_scale = static_cast<std::uint32_t>(std::strtoul(arguments[3], nullptr, 10));
    }
    if (count > 4) {
        setup.off_below = static_cast<std::uint32_t>(std::strtoul(arguments[4], nullptr, 10));
    }
    static fajma::Ppg ppg(setup);
    const auto step = static_cast<unsigned long>(every_s * static_cast<double>(setup.rate_hz) + 0.5);
    unsigned long samples = 0;
    unsigned red = 0;
    unsigned infrared = 0;
    while (std::scanf("%u,%u", &red, &infrared) == 2) {
        ppg.take(red, infrared);
        if (++samples % step == 0) {
            tell(ppg, static_cast<double>(samples) / static_cast<double>(setup.rate_hz));
        }
    }
    if (samples % step != 0) {
        tell(ppg, static_cast<double>(samples) / static_cast<double>(setup.rate_hz));
    }
}
