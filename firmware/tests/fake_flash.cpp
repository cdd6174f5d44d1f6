#include "fake_flash.hpp"

#include <algorithm>

namespace fajma::testing {

bool FakeFlash::power_goes() {
    ++operations;
    if (left_ == forever || left_-- > 0) {
        return false;
    }
    dead_ = true;
    return true;
}

bool FakeFlash::erase(std::size_t sector) {
    if (dead_) {
        return false;
    }
    const auto begin = content.begin() + static_cast<std::ptrdiff_t>(sector * sector_bytes_);
    const auto end = begin + static_cast<std::ptrdiff_t>(sector_bytes_);
    const auto first = programmed_.begin() + static_cast<std::ptrdiff_t>(sector * sector_bytes_);
    if (power_goes()) {
        switch (random_() % 5) {
            case 0:  // had not begun
                break;
            case 1:  // had ended
                std::fill(begin, end, 0xFF);
                break;
            case 2:  // the beginning is erased
                std::fill(begin, begin + static_cast<std::ptrdiff_t>(random_() % sector_bytes_), 0xFF);
                break;
            case 3:  // the end is erased
                std::fill(begin + static_cast<std::ptrdiff_t>(random_() % sector_bytes_), end, 0xFF);
                break;
            default:  // each cell as it likes
                std::generate(begin, end, [this] { return static_cast<std::uint8_t>(random_()); });
        }
        return false;
    }
    ++erased[sector];
    std::fill(begin, end, 0xFF);
    std::fill(first, first + static_cast<std::ptrdiff_t>(sector_bytes_), false);
    return true;
}

bool FakeFlash::program(std::size_t offset, Bytes data) {
    if (dead_) {
        return false;
    }
    constexpr std::size_t unit = 32;
    if (offset % unit != 0 || data.size % unit != 0 || offset + data.size > content.size() ||
        offset / 256 != (offset + data.size - 1) / 256) {  // a page
        ++misuses;
        return false;
    }
    const bool cut = power_goes();
    const std::size_t whole = cut ? random_() % (data.size + 1) : data.size;
    const bool in_order = !cut || random_() % 2 == 0;
    for (std::size_t index = 0; index < data.size; ++index) {
        misuses += programmed_[offset + index] ? 1 : 0;
        std::uint8_t kept = 0;  // bits that are not cleared yet
        if (!in_order) {
            kept = static_cast<std::uint8_t>(random_());
        } else if (index == whole) {
            kept = static_cast<std::uint8_t>(random_());
        } else if (index > whole) {
            kept = 0xFF;
        }
        content[offset + index] &= static_cast<std::uint8_t>(data.data[index] | kept);
        // What a cut has not touched can be programmed still: nobody can tell it from erased.
        programmed_[offset + index] = !cut || content[offset + index] != 0xFF;
    }
    return !cut;
}

bool FakeFlash::read(std::size_t offset, std::uint8_t* into, std::size_t size) const {
    if (dead_ || offset + size > content.size()) {
        return false;
    }
    std::copy_n(content.begin() + static_cast<std::ptrdiff_t>(offset), size, into);
    return true;
}

}  // namespace fajma::testing
