/// NOR flash in memory that behaves as the device's does, and loses power when it is told to.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "ports.hpp"

namespace fajma::testing {

class FakeFlash final : public Flash {
 public:
    FakeFlash(std::size_t sectors, std::size_t sector_bytes)
        : sector_bytes_(sector_bytes),
          content(sectors * sector_bytes, 0xFF),
          erased(sectors, 0),
          programmed_(content.size(), false) {}

    std::size_t sector_bytes() const override { return sector_bytes_; }
    std::size_t sectors() const override { return content.size() / sector_bytes_; }
    bool erase(std::size_t sector) override;
    bool program(std::size_t offset, Bytes data) override;
    bool read(std::size_t offset, std::uint8_t* into, std::size_t size) const override;

    /// Power goes in the middle of the operation after so many; `randomness` says how far that one came.
    void cut_after(std::uint64_t count, std::uint32_t randomness) {
        left_ = count;
        random_.seed(randomness);
    }

    /// Power is back.
    void restore() {
        left_ = forever;
        dead_ = false;
    }

    bool dead() const { return dead_; }

 private:
    static constexpr std::uint64_t forever = ~std::uint64_t{0};

    bool power_goes();

    std::size_t sector_bytes_;

 public:
    std::vector<std::uint8_t> content;
    std::vector<std::uint64_t> erased;  ///< how often each sector was
    std::uint64_t operations = 0;       ///< so far
    std::uint64_t misuses = 0;          ///< programs that the device's flash would not take

 private:
    std::vector<bool> programmed_;
    std::uint64_t left_ = forever;
    bool dead_ = false;
    std::mt19937 random_;
};

}  // namespace fajma::testing
