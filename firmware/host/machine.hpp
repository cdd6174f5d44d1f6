/// The clock and the randomness of Linux.
#pragma once

#include <sys/random.h>

#include <cstdint>
#include <cstdlib>
#include <ctime>

#include "ports.hpp"

namespace fajma::host {

class SystemClock final : public Clock {
 public:
    /// Args: `set` is whether the time of day is known, `offset_ms` how wrong it is; for trying that out.
    SystemClock(bool set, std::int64_t offset_ms)
        : start_ms_(now_ms(CLOCK_BOOTTIME)), set_(set), offset_ms_(offset_ms) {}

    std::uint64_t mono_ms() const override { return now_ms(CLOCK_BOOTTIME) - start_ms_; }

    std::uint64_t unix_ms() const override {
        const std::int64_t now = static_cast<std::int64_t>(now_ms(CLOCK_REALTIME)) + offset_ms_;
        return set_ ? static_cast<std::uint64_t>(now) : 0;
    }

    /// Its own clock only, not the machine's.
    void set_unix_ms(std::uint64_t now) override {
        offset_ms_ = static_cast<std::int64_t>(now) - static_cast<std::int64_t>(now_ms(CLOCK_REALTIME));
        set_ = true;
    }

 private:
    static std::uint64_t now_ms(clockid_t which) {
        timespec now{};
        clock_gettime(which, &now);
        return static_cast<std::uint64_t>(now.tv_sec) * 1000 + static_cast<std::uint64_t>(now.tv_nsec) / 1000000;
    }

    std::uint64_t start_ms_;
    bool set_;
    std::int64_t offset_ms_;
};

class SystemRandom final : public Random {
 public:
    void fill(std::uint8_t* into, std::size_t size) override {
        if (::getrandom(into, size, 0) != static_cast<ssize_t>(size)) {
            std::abort();  // a nonce that repeats gives the key away
        }
    }
};

}  // namespace fajma::host
