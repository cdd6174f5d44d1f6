/// libFuzzer: the journal over any contents of flash. It never crashes, and what it yields is in order.
#include "journal.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "crc.hpp"
#include "fake_flash.hpp"

using namespace fajma;

namespace {

constexpr std::size_t sectors = 4;
constexpr std::size_t sector_bytes = 512;

void must(bool held, int line = __builtin_LINE()) {
    if (!held) {
        std::fprintf(stderr, "line %d does not hold\n", line);
        std::abort();
    }
}

/// Makes a check sum fit, which a fuzzer hardly finds by itself.
void mend(std::vector<std::uint8_t>& content, std::size_t at, std::size_t size, const std::uint8_t* sequence) {
    const std::uint32_t sum = crc32({content.data() + at, size - 4}, crc32({sequence, 8}));
    put_big(content.data() + at + size - 4, sum, 4);
}

void mend_sector(std::vector<std::uint8_t>& content, std::size_t sector, std::uint8_t which) {
    const std::size_t start = sector * sector_bytes;
    std::uint8_t sequence[8];
    std::memcpy(sequence, content.data() + start + 4, sizeof sequence);
    for (unsigned slot = 0; slot < 6; ++slot) {
        if ((which >> slot & 1) != 0) {
            mend(content, start + 128 + 64 * slot, 64, sequence);
        }
    }
    if ((which & 0x40) != 0) {
        mend(content, start, 128, sequence);
    }
}

}  // namespace

/// Input: for each sector a byte that says which of its check sums are mended, then the contents of flash.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t size) {
    if (size < sectors) {
        return 0;
    }
    testing::FakeFlash flash(sectors, sector_bytes);
    std::copy_n(input + sectors, std::min(size - sectors, flash.content.size()), flash.content.begin());
    for (std::size_t sector = 0; sector < sectors; ++sector) {
        mend_sector(flash.content, sector, input[sector]);
    }
    Journal journal(flash);
    if (journal.open() != Journal::Opened::sound) {
        return 0;
    }
    for (int round = 0; round < 3; ++round) {
        must(journal.oldest() <= journal.next());
        Journal::Walk walk(journal);
        Entry entry;
        std::uint64_t expected = journal.oldest();
        std::uint64_t middle = expected;
        int seen = 0;
        while (walk.next(entry)) {
            must(entry.first() == expected && entry.last() >= entry.first());
            expected = entry.last() + 1;
            middle = ++seen < 5 ? entry.last() : middle;
        }
        must(expected == journal.next());
        Reading reading;
        for (int count = 0; count < 9; ++count) {
            const std::uint64_t before = journal.next();
            if (!journal.add(reading)) {
                return 0;  // numbers are used up
            }
            must(reading.number == before && journal.next() == before + 1);
        }
        journal.acknowledge(middle);
    }
    return 0;
}
