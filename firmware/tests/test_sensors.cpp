/// What probes and cuffs say.
#include <doctest/doctest.h>

#include <vector>

#include "blood_pressure.hpp"
#include "crc.hpp"
#include "ds18b20.hpp"
#include "pack.hpp"

using namespace fajma;

namespace {

using Octets = std::vector<std::uint8_t>;

Bytes view(const Octets& octets) { return {octets.data(), octets.size()}; }

Octets scratchpad(int sixteenths, std::uint8_t configuration = 0x7F) {
    Octets raw = {static_cast<std::uint8_t>(sixteenths),
                  static_cast<std::uint8_t>(sixteenths >> 8),
                  0x4B,
                  0x46,
                  configuration,
                  0xFF,
                  0x0C,
                  0x10};
    raw.push_back(crc8_1wire(view(raw)));
    return raw;
}

Probe read(const Octets& raw, std::int32_t& celsius) { return read_ds18b20(view(raw), celsius); }

void add_little(Octets& octets, unsigned value) {
    octets.push_back(static_cast<std::uint8_t>(value));
    octets.push_back(static_cast<std::uint8_t>(value >> 8));
}

/// A cuff's message without its optional fields.
Octets cuff(std::uint8_t flags, unsigned systolic, unsigned diastolic, unsigned mean = 0x07FF) {
    Octets octets = {flags};
    add_little(octets, systolic);
    add_little(octets, diastolic);
    add_little(octets, mean);
    return octets;
}

}  // namespace

TEST_CASE("temperatures of the datasheet are read exactly") {
    std::int32_t celsius = 0;
    const std::pair<int, std::int32_t> table[] = {
        {0x07D0, 1250000}, {0x0191, 250625},   {0x00A2, 101250},   {0x0008, 5000},     {0x0000, 0},
        {-0x0008, -5000},  {-0x00A2, -101250}, {-0x0191, -250625}, {-0x0370, -550000}, {0x0253, 371875}};
    for (const auto& [raw, expected] : table) {
        CAPTURE(raw);
        REQUIRE(read(scratchpad(raw), celsius) == Probe::sound);
        CHECK(celsius == expected);
    }
}

TEST_CASE("a probe that has not measured yet, is absent, or is garbled has no temperature") {
    std::int32_t celsius = 42;
    CHECK(read(scratchpad(0x0550), celsius) == Probe::power_on);
    CHECK(read(Octets(9, 0x00), celsius) == Probe::absent);  // which fits its CRC
    CHECK(read(Octets(9, 0xFF), celsius) == Probe::absent);
    CHECK(read(Octets(8, 0x10), celsius) == Probe::garbled);
    CHECK(read(scratchpad(126 * 16), celsius) == Probe::beyond);
    CHECK(read(scratchpad(-56 * 16), celsius) == Probe::beyond);
    CHECK(read(scratchpad(0x0250, 0xFF), celsius) == Probe::garbled);
    for (std::size_t at = 0; at < 9; ++at) {
        for (unsigned bit = 0; bit < 8; ++bit) {
            Octets raw = scratchpad(0x0253);
            raw[at] ^= static_cast<std::uint8_t>(1u << bit);
            CHECK(read(raw, celsius) == Probe::garbled);
        }
    }
    CHECK(celsius == 42);
}

TEST_CASE("bits that the resolution leaves undefined do not count") {
    std::int32_t celsius = 0;
    REQUIRE(read(scratchpad(0x0257, 0x1F), celsius) == Probe::sound);  // 9 bits: half degrees
    CHECK(celsius == 370000);
    REQUIRE(read(scratchpad(0x0257, 0x3F), celsius) == Probe::sound);
    CHECK(celsius == 372500);
    REQUIRE(read(scratchpad(0x0257, 0x5F), celsius) == Probe::sound);
    CHECK(celsius == 373750);
    CHECK(read(scratchpad(0x0553, 0x3F), celsius) == Probe::power_on);
}

TEST_CASE("an SFLOAT is a number, or none") {
    std::int32_t value = 7;
    for (const unsigned special : {0x07FFu, 0x0800u, 0x07FEu, 0x0802u, 0x0801u}) {
        CHECK(!read_sfloat(static_cast<std::uint16_t>(special), value));
    }
    CHECK(value == 7);
    const std::pair<unsigned, std::int32_t>
        table[] = {{0x0078, 120 * scale},
                   {0xF4B0, 120 * scale},
                   {0xE000 | 1172, 117200},
                   {0xF7FF, 2047000},  // the mantissa of NaN with another exponent is a number
                   {0xF800, -2048000},
                   {0x0FFF, -scale},
                   {0x1001, 10 * scale},
                   {0x8001, 0},
                   {0xC009, 9}};
    for (const auto& [raw, expected] : table) {
        CAPTURE(raw);
        REQUIRE(read_sfloat(static_cast<std::uint16_t>(raw), value));
        CHECK(value == expected);
    }
    CHECK(!read_sfloat(0x77FD, value));
    CHECK(!read_sfloat(0x7802, value));
}

TEST_CASE("a cuff's pressure is read in mmHg, whatever its unit, with or without its optional fields") {
    BloodPressure pressure;
    REQUIRE(read_blood_pressure(view(cuff(0, 118, 76)), pressure) == Cuff::sound);
    CHECK(pressure.systolic == 118 * scale);
    CHECK(pressure.diastolic == 76 * scale);
    CHECK(!pressure.has_pulse);
    REQUIRE(read_blood_pressure(view(cuff(1, 0xF000 | 160, 0xF000 | 106)), pressure) == Cuff::sound);  // 16.0/10.6 kPa
    CHECK(pressure.systolic == 1200099);
    CHECK(pressure.diastolic == 795065);
    Octets full = cuff(0x1E, 118, 76, 90);
    full.insert(full.end(), {0xEA, 0x07, 3, 2, 14, 2, 0});  // a time
    add_little(full, 72);
    full.push_back(1);         // a user
    add_little(full, 1 << 2);  // irregular pulse: believed
    REQUIRE(read_blood_pressure(view(full), pressure) == Cuff::sound);
    CHECK(pressure.has_pulse);
    CHECK(pressure.pulse == 72 * scale);
    Octets pulse_unknown = cuff(4, 118, 76);
    add_little(pulse_unknown, 0x07FF);
    REQUIRE(read_blood_pressure(view(pulse_unknown), pressure) == Cuff::sound);
    CHECK(!pressure.has_pulse);
}

TEST_CASE("a cuff that found nothing, was disturbed or is cut short says no pressure") {
    BloodPressure pressure;
    CHECK(read_blood_pressure(view(cuff(0, 0x07FF, 0x07FF)), pressure) == Cuff::no_value);
    CHECK(read_blood_pressure(view(cuff(0, 118, 0x0800)), pressure) == Cuff::no_value);
    CHECK(read_blood_pressure(view(cuff(0, 118, 0)), pressure) == Cuff::no_value);
    CHECK(read_blood_pressure(view(cuff(1, 0x5064, 10)), pressure) == Cuff::no_value);
    CHECK(read_blood_pressure(view(cuff(0x20, 118, 76)), pressure) == Cuff::malformed);
    for (const unsigned status : {1u << 0, 1u << 1, 1u << 5}) {
        Octets disturbed = cuff(0x10, 118, 76);
        add_little(disturbed, status);
        CHECK(read_blood_pressure(view(disturbed), pressure) == Cuff::disturbed);
    }
    const Octets whole = cuff(0, 118, 76);
    for (std::size_t size = 0; size < whole.size(); ++size) {
        CHECK(read_blood_pressure({whole.data(), size}, pressure) == Cuff::malformed);
    }
    Octets longer = whole;
    longer.push_back(0);
    CHECK(read_blood_pressure(view(longer), pressure) == Cuff::malformed);
    CHECK(pressure.systolic == 0);
}
