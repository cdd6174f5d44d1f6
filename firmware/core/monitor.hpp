/// A monitor, but for its sensors and its radio: measures, keeps, sends until it is acknowledged, obeys.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "buzzer.hpp"
#include "envelope.hpp"
#include "identity.hpp"
#include "journal.hpp"
#include "pack.hpp"
#include "ports.hpp"
#include "power.hpp"
#include "refusal.hpp"
#include "window.hpp"

namespace fajma {

class Monitor {
 public:
    /// Entries of one pack, as `console/monitor_v2.py`.
    static constexpr std::size_t pack_most = 50;

    /// Args: `journal` is open; `up` seals what is said, `down` opens what is told.
    Monitor(Clock& clock, Random& random, Journal& journal, const Key& up, const Key& down)
        : clock_(clock), random_(random), journal_(journal), up_(up), down_(down) {}

    /// Takes what the sensors said, with the times and the number filled in. True: it is in flash. The buzzer
    /// hears of it in any case.
    bool measure(Reading& reading);

    /// The connection is there: what waits is sent at once.
    void connected() { window_.connected(); }

    /// What to publish on the `vitals` topic now; empty for nothing. It lasts until the next call.
    Bytes outgoing(const PowerPlan& plan);

    /// Takes what came on a topic; opened in place. What is refused changes nothing.
    Refusal hear(std::string_view topic, std::uint8_t* payload, std::size_t size);

    Buzzer& buzzer() { return buzzer_; }
    const Config& config() const { return journal_.config(); }

 private:
    static constexpr std::size_t content_bytes = 12 * 1024;
    static constexpr std::uint64_t clock_tolerance_ms = 1000;

    Refusal take_ack(Bytes content);
    Refusal take_config(Bytes content);

    Clock& clock_;
    Random& random_;
    Journal& journal_;
    Key up_;
    Key down_;
    Window window_;
    Buzzer buzzer_;
    std::uint64_t sent_ms_ = 0;
    bool sent_ = false;
    std::uint8_t buffer_[seal_headroom + content_bytes + tag_bytes];
};

}  // namespace fajma
