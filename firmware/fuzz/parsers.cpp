/// libFuzzer: everything that comes from outside, on any bytes. The first byte says which reader gets the rest.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "ack.hpp"
#include "blood_pressure.hpp"
#include "cbor.hpp"
#include "config.hpp"
#include "ds18b20.hpp"
#include "envelope.hpp"
#include "ota.hpp"
#include "senml.hpp"

using namespace fajma;

namespace {

const Address device = {{0xA4, 0xCF, 0x12, 0xF0, 0x3B, 0x7E}};

/// Says that every seal and every signature fits, so that what is behind them is reached.
class Credulous final : public Aead, public Verifier {
 public:
    bool seal(const std::uint8_t*, Bytes, std::uint8_t*, std::size_t, std::uint8_t*) override { return true; }
    bool open(const std::uint8_t*, Bytes, std::uint8_t*, std::size_t, const std::uint8_t*) override { return true; }
    bool verify(Bytes, Bytes) override { return true; }
};

void must(bool held, int line = __builtin_LINE()) {
    if (!held) {
        std::fprintf(stderr, "line %d does not hold\n", line);
        std::abort();
    }
}

void read_all_of(Bytes data) {
    if (cbor::check(data) == Refusal::none) {
        cbor::Cursor(data).skip();
    }
    Records records(data, device, "seq");
    Record record;
    while (!records.at_end() && records.next(record) == Refusal::none) {
        std::uint64_t number = 0;
        count_of(record, number);
        must(number < std::uint64_t{1} << 63);
        if (record.has_base_time && instant_ms(record.base_time, number) == Refusal::none) {
            must(number == 0 || (number >= 268435456000 && number < 253402300800000));
        }
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t size) {
    if (size == 0) {
        return 0;
    }
    const std::vector<std::uint8_t> rest(input + 1, input + size);  // its own, so that its ends are guarded
    const Bytes data{rest.data(), rest.size()};
    Credulous credulous;
    switch (input[0] % 8) {
        case 0:
            read_all_of(data);
            break;
        case 1: {
            Ack ack;
            if (read_ack(data, device, ack) == Refusal::none) {
                must(ack.unix_ms >= 268435456000);
            }
            break;
        }
        case 2: {
            Config config;
            if (read_config(data, device, config) == Refusal::none) {
                must(config.counter > 0 && config.spo2_low >= 60 && config.heart_rate_low < config.heart_rate_high);
            }
            break;
        }
        case 3: {
            std::vector<std::uint8_t> payload = rest;
            Bytes content;
            if (open({device, 1, credulous}, "fajma/v2/A4CF12F03B7E/ack", payload.data(), payload.size(), content) ==
                Refusal::none) {
                must(content.data >= payload.data() && content.size <= payload.size());
            }
            break;
        }
        case 4: {
            std::int32_t celsius = 0;
            if (read_ds18b20(data, celsius) == Probe::sound) {
                must(celsius >= -550000 && celsius <= 1250000 && celsius != 850000);
            }
            break;
        }
        case 5: {
            BloodPressure pressure;
            if (read_blood_pressure(data, pressure) == Cuff::sound) {
                must(pressure.systolic > 0 && pressure.diastolic > 0);
            }
            break;
        }
        case 6: {
            Manifest manifest;
            if (read_manifest(credulous, data, "fajma-1", 7, 1 << 20, manifest) == Update::accepted) {
                must(manifest.version > 7 && manifest.size > 0 && manifest.size <= 1 << 20);
            }
            break;
        }
        default: {
            Address named{};
            Channel channel{};
            if (parse_topic(data.text(), named, channel) == Refusal::none) {
                must(topic_of(named, channel).text() == data.text());
            }
        }
    }
    return 0;
}
