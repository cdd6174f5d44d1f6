/// Whether every task still works: the hardware watchdog is fed only then. Pure.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fajma {

enum class Task : std::uint8_t { sampling, judging, storing, sending };
constexpr std::size_t tasks = 4;

class Supervisor {
 public:
    /// Args: `allowed_ms`, for each task, is the longest that it may be silent; `now_ms` is monotonic.
    Supervisor(const std::uint32_t (&allowed_ms)[tasks], std::uint64_t now_ms) {
        for (std::size_t index = 0; index < tasks; ++index) {
            allowed_ms_[index] = allowed_ms[index];
            seen_ms_[index] = now_ms;
        }
    }

    /// A task has done its work, which is more than that it runs.
    void alive(Task task, std::uint64_t now_ms) { seen_ms_[static_cast<std::size_t>(task)] = now_ms; }

    /// Whether the watchdog is to be fed. If not, `late` is the task to be noted before the reset that follows.
    bool all_well(std::uint64_t now_ms, Task& late) const {
        for (std::size_t index = 0; index < tasks; ++index) {
            if (now_ms - seen_ms_[index] > allowed_ms_[index]) {
                late = static_cast<Task>(index);
                return false;
            }
        }
        return true;
    }

 private:
    std::uint32_t allowed_ms_[tasks];
    std::uint64_t seen_ms_[tasks];
};

}  // namespace fajma
